"""Results on the meta device of operations whose own meta kernels, written in Python, are most of the time of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_COMBINED = {"add", "sub", "mul", "div"}
_LIKE_INPUT = {"relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "leaky_relu", "elu"}


def quick(op: str, args: dict[str, Any], *, in_place: bool) -> Tensor | None:
    """The result of an operation, of the shape, strides and type that PyTorch gives it.

    None where PyTorch must work it out: on other devices, for other operations, and for sizes that do not fit.
    """
    x = args.get("input", args.get("self"))
    if not (isinstance(x, Tensor) and x.is_meta and x.is_floating_point()):
        return None
    if op in _COMBINED and not in_place:
        return _combined(x, args["other"])
    if op in _LIKE_INPUT or (op == "batch_norm" and _all_of(args, x.shape[1:2])):
        return x if in_place else x.new_empty(x.shape) if x.is_contiguous() else torch.empty_like(x)
    if op == "layer_norm" and _all_of(args, x.shape[x.ndim - len(args["normalized_shape"]) :]):
        return x.new_empty(x.shape)
    if op == "linear" and _multiplies(x, args["weight"], args["bias"]):
        return x.new_empty((*x.shape[:-1], len(args["weight"])))
    if op == "mean" and args.get("dim") and args["dtype"] is None and x.is_contiguous():
        return _reduced(x, {d % x.ndim for d in args["dim"]}, keep=args["keepdim"])
    return None


def _combined(x: Tensor, other: object) -> Tensor | None:
    """Arithmetic of two tensors of one type laid out in order, one of which has the shape of the result."""
    if not (isinstance(other, Tensor) and other.is_meta and other.dtype == x.dtype):
        return None
    if not (x.is_contiguous() and other.is_contiguous()):
        return None
    larger, smaller = (x, other) if x.numel() >= other.numel() else (other, x)
    sizes = [*zip(reversed(larger.shape), reversed(smaller.shape), strict=False)]
    fits = len(sizes) == smaller.ndim and all(b in (1, a) for a, b in sizes)
    return larger.new_empty(larger.shape) if fits else None


def _reduced(x: Tensor, axes: set[int], *, keep: bool) -> Tensor:
    return x.new_empty([1 if d in axes else n for d, n in enumerate(x.shape) if keep or d not in axes])


def _all_of(args: dict[str, Any], shape: torch.Size) -> bool:
    """Have the parameters and statistics of a normalisation this shape?"""
    sizes = [
        args[name].shape for name in ("weight", "bias", "running_mean", "running_var") if args.get(name) is not None
    ]
    return all(size == shape for size in (*sizes, torch.Size(args.get("normalized_shape", shape))))


def _multiplies(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    fits = weight.ndim == 2 and x.shape[-1:] == weight.shape[1:] and x.dtype == weight.dtype
    return fits and (bias is None or bias.shape == weight.shape[:1])
