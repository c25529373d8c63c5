"""Results that are made without PyTorch's meta kernels are the ones that those would have made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import batch_norm, layer_norm, linear

from prunecli.surgery.quick import quick

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "permuted": lambda x: x.permute(0, 2, 3, 1),
    "transposed": lambda x: x.transpose(2, 3),
    "sliced": lambda x: x[:, :, ::2],
    "expanded": lambda x: x[:, :1].expand(2, 6, 5, 4),
}
POINTWISE = ["relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "leaky_relu", "elu"]


def _meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _looks(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.stride(), x.dtype, x.device


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_look_like_those_of_pytorch(layout: str, dtype: torch.dtype) -> None:
    x = LAYOUTS[layout](_meta(2, 6, 5, 4)).to(dtype)
    channels, last = x.shape[1], x.shape[3]
    scale, statistics, weight = _meta(last).to(dtype), _meta(channels).to(dtype), _meta(3, last).to(dtype)
    for op in POINTWISE:
        result = quick(op, {"self": x}, in_place=False)
        assert result is not None
        assert _looks(result) == _looks(getattr(torch.nn.functional, op)(x))
    pairs = {
        "batch_norm": ({"running_mean": statistics, "running_var": statistics}, batch_norm(x, statistics, statistics)),
        "layer_norm": ({"normalized_shape": [last], "weight": scale}, layer_norm(x, [last], scale)),
        "linear": ({"weight": weight, "bias": None}, linear(x, weight)),
    }
    for op, (args, expected) in pairs.items():
        result = quick(op, {"input": x, **args}, in_place=False)
        assert result is not None
        assert _looks(result) == _looks(expected)


PAIRS = (
    [(2, 6, 5, 4), (2, 6, 5, 4)], [(2, 6, 5, 4), (2, 6, 1, 1)], [(2, 6, 1, 1), (2, 6, 5, 4)],
    [(2, 6, 1, 1), (2, 6, 1, 1)], [(3, 4), (4,)], [(1, 4), (4,)], [(2, 1, 4), (2, 3, 4)], [(2, 3), (2, 2, 3)],
)  # fmt: skip


@pytest.mark.parametrize("shapes", PAIRS)
def test_arithmetic_looks_like_that_of_pytorch(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    x, other = (_meta(*shape) for shape in shapes)
    for op in ("add", "sub", "mul", "div"):
        result = quick(op, {"self": x, "other": other}, in_place=False)
        assert result is not None
        assert _looks(result) == _looks(getattr(torch, op)(x, other))


@pytest.mark.parametrize("axes", [(2, 3), (-1,), (1, -2)])
@pytest.mark.parametrize("keep", [True, False])
def test_means_look_like_those_of_pytorch(axes: tuple[int, ...], keep: bool) -> None:
    x = _meta(2, 6, 5, 4)
    result = quick("mean", {"self": x, "dim": [*axes], "keepdim": keep, "dtype": None}, in_place=False)
    assert result is not None
    assert _looks(result) == _looks(x.mean(axes, keepdim=keep))


@pytest.mark.parametrize("other", [2.0, _meta(3, 5), _meta(2, 2, 1), _meta(2, 3).double(), _meta(3, 2).T], ids=str)
def test_other_arithmetic_is_left_to_pytorch(other: Tensor | float) -> None:
    assert quick("add", {"self": _meta(2, 3), "other": other}, in_place=False) is None


def test_an_operation_in_place_returns_its_input() -> None:
    x = _meta(2, 6)
    assert quick("hardtanh", {"self": x}, in_place=True) is x


@pytest.mark.parametrize(
    "op, args",
    [
        ("batch_norm", {"input": _meta(2, 6, 4, 4), "running_mean": _meta(5)}),
        ("batch_norm", {"input": _meta(2, 6, 4, 4), "weight": _meta(1)}),
        ("layer_norm", {"input": _meta(2, 6), "normalized_shape": [5]}),
        ("layer_norm", {"input": _meta(2, 6), "normalized_shape": [6], "weight": _meta(5)}),
        ("layer_norm", {"input": _meta(6), "normalized_shape": [2, 6]}),
        ("linear", {"input": _meta(2, 6), "weight": _meta(3, 5), "bias": None}),
        ("linear", {"input": _meta(2, 6), "weight": _meta(3, 6), "bias": _meta(2)}),
        ("linear", {"input": _meta(2, 6), "weight": _meta(3, 6).half(), "bias": None}),
        ("sigmoid", {"self": torch.empty(2, dtype=torch.int64, device="meta")}),
        ("relu", {"self": torch.ones(2)}),
        ("mean", {"self": _meta(2, 6), "dim": [], "keepdim": False, "dtype": None}),
        ("mean", {"self": _meta(2, 6), "dim": [1], "keepdim": False, "dtype": torch.float64}),
        ("mean", {"self": _meta(2, 6).T, "dim": [1], "keepdim": False, "dtype": None}),
        ("conv2d", {"input": _meta(2, 3, 8, 8)}),
    ],
)
def test_pytorch_decides_about_everything_else(op: str, args: dict[str, Any]) -> None:
    assert quick(op, args, in_place=False) is None
