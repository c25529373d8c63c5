"""Networks run with slices missing: what a cut network must compute, worked out without labels, roles or shapes.

NaN stands for an element that is not there. It spreads by itself through whatever moves data or works element by
element; products, sums and norms skip it. A network whose removed slices hold NaN then computes, in its full shape,
what the cut one computes in its own.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import oracle
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from prunecli.surgery import Plan, Structure
from prunecli.surgery.twin import all_tensors

NAN = float("nan")


def compare(network: nn.Module, structure: Structure, plan: Plan, cut: nn.Module, inputs: tuple[Any, ...]) -> set[str]:
    """The cut network computes what the whole one does with its removed slices missing, in eval and train mode.

    Returns the operations that mixed removed channels with others: zeros in their place would have changed the result.
    """
    whole = copy.deepcopy(network)
    tensors = all_tensors(whole)
    for (name, axis), keep in structure.keep_masks(plan).items():
        if tensors[name].is_floating_point():
            tensors[name].data.index_fill_(axis, (~keep).nonzero()[:, 0], NAN)
    missing = Missing()
    for train in (False, True):
        oracle.same(whole.train(train), cut.train(train), inputs, missing)
    return missing.mixing


class Missing(TorchDispatchMode):
    """Skips what is missing. `mixing` names the operations that would have used a zero in its place differently."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing: set[str] = set()

    def __enter__(self) -> Missing:
        """Fused attention would hide products."""
        self._undo = contextlib.ExitStack()
        self._undo.enter_context(sdpa_kernel(SDPBackend.MATH))
        self._undo.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._undo.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name == "convolution" and args[0].ndim == 3 and 0 < int((there := _places(args[0])).sum()) < len(there):
            self.mixing.add(name)
            return _sliding(func, there, *args)
        if name in _PRODUCTS:
            return _PRODUCTS[name](func, *args, **(kwargs or {}))
        if name in _OVER_AXES and args[0].is_floating_point() and bool(args[0].isnan().any()):
            return _OVER_AXES[name](self.mixing, func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _product(func: Any, a: Tensor, b: Tensor) -> Tensor:
    """Sums over the terms that are there; a result without any is missing."""
    gone = a.isnan().all(-1).unsqueeze(-1) if a.ndim > 1 else a.isnan().all()
    lost = b.isnan().all(-2).unsqueeze(-2) if b.ndim > 1 else b.isnan().all()
    if b.ndim == 1 and a.ndim > 1:
        gone = gone.squeeze(-1)
    return func(a.nan_to_num(), b.nan_to_num()).masked_fill(gone | lost, NAN)


def _biased(product: Any) -> Callable[..., Tensor]:
    def run(func: Any, bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        return beta * bias + alpha * _product(product, a, b)

    return run


def _linear(func: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result = _product(torch.matmul, x, weight.t())
    return result if bias is None else result + bias


def _convolution(
    func: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> Tensor:  # fmt: skip
    """The same. Weights are [outputs, inputs of a group, ...], or transposed [inputs, outputs of a group, ...]."""
    rest = stride, padding, dilation, transposed, output_padding, groups
    result = func(x.nan_to_num(), weight.nan_to_num(), None, *rest)
    if transposed:
        lost = weight.isnan().unflatten(0, (groups, -1)).flatten(3).all(3).all(1).flatten()
    else:
        lost = weight.isnan().flatten(1).all(1)
    gone = x.isnan().flatten(1).all(1)
    result = result.masked_fill((gone[:, None] | lost).view(*result.shape[:2], *[1] * (x.ndim - 2)), NAN)
    return result if bias is None else result + bias.view(-1, *[1] * (x.ndim - 2))


def _bilinear(func: Any, a: Tensor, weight: Tensor, b: Tensor, *axes: Any) -> Tensor:
    """The product of three of which bilinear layers are made; weights are [outputs, inputs, inputs]."""
    result = func(a.nan_to_num(), weight.nan_to_num(), b.nan_to_num(), *axes)
    return result.masked_fill(weight.isnan().flatten(1).all(1), NAN)


def _places(x: Tensor) -> Tensor:
    """Which places along the last axis hold anything."""
    return ~x.isnan().flatten(0, -2).all(0)


def _sliding(func: Any, there: Tensor, x: Tensor, *rest: Any) -> Tensor:
    """A convolution along channels, as many as before: neighbours are those that are there."""
    result = func(x[..., there], *rest)
    return result.new_full((*result.shape[:2], len(there)), NAN).index_copy(2, there.nonzero()[:, 0], result)


_PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "mm": _product,
    "bmm": _product,
    "mv": _product,
    "dot": _product,
    "addmm": _biased(torch.mm),
    "baddbmm": _biased(torch.bmm),
    "addmv": _biased(torch.mv),
    "linear": _linear,
    "convolution": _convolution,
    "_trilinear": _bilinear,
}


def _note(mixing: set[str], func: Any, x: Tensor, axes: list[int]) -> None:
    """A row of which a part is missing: a zero there would have counted."""
    size = torch.Size([x.shape[d] for d in axes]).numel()
    if bool((x.isnan().sum(axes) % size).any()):
        mixing.add(func._schema.name.removeprefix("aten::"))


def _axes(x: Tensor, dim: Any) -> list[int]:
    if dim is None or dim == []:
        return list(range(x.ndim))
    return [d % x.ndim for d in ([dim] if isinstance(dim, int) else dim)]


def _sum(mixing: set[str], func: Any, x: Tensor, dim: Any = None, keepdim: bool = False, **options: Any) -> Tensor:
    axes = _axes(x, dim)
    return torch.sum(x.nan_to_num(), axes, keepdim, **options).masked_fill(_all(x, axes, keepdim), NAN)


def _all(x: Tensor, axes: list[int], keepdim: bool = True) -> Tensor:
    """Where everything along these axes is missing."""
    return (~x.isnan()).sum(axes, keepdim) == 0


def _mean(mixing: set[str], func: Any, x: Tensor, dim: Any = None, keepdim: bool = False, **options: Any) -> Tensor:
    _note(mixing, func, x, _axes(x, dim))
    return x.nanmean(_axes(x, dim), keepdim)


def _moments(x: Tensor, axes: list[int], correction: float = 0) -> tuple[Tensor, Tensor]:
    """Mean and variance of what is there, axes kept."""
    mean = x.nanmean(axes, keepdim=True)
    there = (~x.isnan()).sum(axes, keepdim=True)
    return mean, (x - mean).square().nansum(axes, keepdim=True).masked_fill(there == 0, NAN) / (there - correction)


def _variance(
    mixing: set[str], func: Any, x: Tensor, dim: Any = None, *, correction: float | None = 1, keepdim: bool = False
) -> Any:
    axes = _axes(x, dim)
    _note(mixing, func, x, axes)
    mean, variance = (
        y if keepdim else y.squeeze(axes) for y in _moments(x, axes, 1 if correction is None else correction)
    )
    name = func._schema.name
    result = variance.sqrt() if "std" in name else variance
    return (result, mean) if "mean" in name else result


def _extremum(mixing: set[str], func: Any, x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    axes = _axes(x, dim)
    _note(mixing, func, x, axes)
    other = -torch.inf if "max" in func._schema.name else torch.inf
    return func(x.nan_to_num(nan=other), axes, keepdim).masked_fill(_all(x, axes, keepdim), NAN)


def _softmax(mixing: set[str], func: Any, x: Tensor, dim: int, *rest: Any) -> Tensor:
    _note(mixing, func, x, [dim % x.ndim])
    return func(x.nan_to_num(nan=-torch.inf), dim, *rest).masked_fill(x.isnan(), NAN)


def _layer_norm(
    mixing: set[str], func: Any, x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    axes = list(range(x.ndim - len(shape), x.ndim))
    _note(mixing, func, x, axes)
    mean, variance = _moments(x, axes)
    scale = (variance + eps).rsqrt()
    result = (x - mean) * scale
    result = result if weight is None else result * weight
    return (result if bias is None else result + bias), mean, scale


def _group_norm(
    mixing: set[str], func: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, size: int,
    groups: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grouped = x.reshape(n, groups, -1)
    _note(mixing, func, grouped, [2])
    mean, variance = _moments(grouped, [2])
    scale = (variance + eps).rsqrt()
    result = ((grouped - mean) * scale).view(n, c, -1)
    result = result if weight is None else result * weight[:, None]
    result = result if bias is None else result + bias[:, None]
    return result.view(x.shape), mean.squeeze(2), scale.squeeze(2)


def _batch_norm(
    mixing: set[str], func: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None,
    variance: Tensor | None, training: bool, momentum: float, eps: float, *rest: Any,
) -> Any:  # fmt: skip
    """Of weights that are standardised, [1, outputs, rest], parts of a channel are missing; else whole channels."""
    gone = x.isnan().transpose(0, 1).flatten(1)
    if not training or torch.equal(gone.all(1), gone.any(1)):
        return func(x, weight, bias, mean, variance, training, momentum, eps, *rest)
    _note(mixing, func, x, [0, 2])
    mean, variance = _moments(x, [0, 2])
    scale = (variance + eps).rsqrt()
    result = (x - mean) * scale
    result = result if weight is None else result * weight[:, None]
    return (result if bias is None else result + bias[:, None]), mean, scale


def _rms_norm(
    mixing: set[str], func: Any, x: Tensor, shape: Any, weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    axes = list(range(x.ndim - len(shape), x.ndim))
    _note(mixing, func, x, axes)
    scale = (x.square().nanmean(axes, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    return (x * scale if weight is None else x * scale * weight), scale


def _weight_norm(mixing: set[str], func: Any, v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    axes = [d for d in range(v.ndim) if d != dim % v.ndim]
    _note(mixing, func, v, axes)
    norm = v.square().nansum(axes, keepdim=True).sqrt().masked_fill(_all(v, axes), NAN)
    return v * (g / norm), norm


def _vector_norm(
    mixing: set[str], func: Any, x: Tensor, order: float = 2, dim: Any = None, keepdim: bool = False, **options: Any
) -> Tensor:
    axes = _axes(x, dim)
    return func(x.nan_to_num(), order, axes, keepdim, **options).masked_fill(_all(x, axes, keepdim), NAN)


def _pad(mixing: set[str], func: Any, x: Tensor, pad: list[int], value: float = 0) -> Tensor:
    """Around a channel that is missing everything is missing; what is added beside channels is there."""
    for n in range(0, len(pad), 2):
        gone = _all(x, [x.ndim - 1 - n // 2])
        x = func(x, [0] * n + pad[n : n + 2], value).masked_fill(gone, NAN)
    return x


def _masked_fill(mixing: set[str], func: Any, x: Tensor, mask: Tensor, value: Any) -> Tensor:
    return func(x, mask, value).masked_fill(x.isnan(), NAN)


_OVER_AXES: dict[str, Callable[..., Any]] = {
    "sum": _sum,
    "mean": _mean,
    "var": _variance,
    "std": _variance,
    "var_mean": _variance,
    "std_mean": _variance,
    "amax": _extremum,
    "amin": _extremum,
    "_softmax": _softmax,
    "_log_softmax": _softmax,
    "_safe_softmax": _softmax,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "_fused_rms_norm": _rms_norm,
    "native_batch_norm": _batch_norm,
    "_weight_norm_interface": _weight_norm,
    "linalg_vector_norm": _vector_norm,
    "constant_pad_nd": _pad,
    "masked_fill": _masked_fill,
}
