"""The function mode of a trace: what PyTorch's functions do with sizes, before operations see bare numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from prunecli.surgery.call import Labels, labels_of, set_labels
from prunecli.surgery.layers import support
from prunecli.surgery.ledger import Ledger
from prunecli.surgery.sizes import Size, aside, size_of

_SHAPED = {"view", "reshape", "expand", "broadcast_to", "unflatten", "layer_norm", "rms_norm"}
_CREATED = {"zeros", "ones", "empty", "full", "rand", "randn", "new_zeros", "new_ones", "new_empty", "new_full"}
_CONVOLUTIONS = {f"conv{'_transpose' * t}{d}d" for t in (0, 1) for d in (1, 2, 3)}
_PLACES = {"split", "split_with_sizes", "__getitem__", "narrow"}
_ARITHMETIC = {
    "add", "add_", "sub", "sub_", "__rsub__", "mul", "mul_", "div", "div_", "__rdiv__", "true_divide", "pow", "pow_",
    "__rpow__", "float_power", "floor_divide", "__floordiv__", "remainder", "clamp", "clamp_", "where", "masked_fill",
    "masked_fill_", "fill_", "full_like", "addcmul", "addcdiv", "tensor", "scalar_tensor", "new_tensor",
}  # fmt: skip
_HANDLED = _SHAPED | _CREATED | _CONVOLUTIONS | _PLACES | {"__get__", "size", "numel", "group_norm"}


class SizeMode(TorchFunctionMode):
    """Hands out sizes that know their channels, and links them with the axes whose length they become.

    `layer` tells the module that is running.
    """

    def __init__(self, ledger: Ledger, layer: Callable[[], str]) -> None:
        super().__init__()
        self.ledger = ledger
        self._layer = layer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "multi_head_attention_forward":
            with self:
                return _attention()(*args, **kwargs)
        values = [*args, *kwargs.values()]
        if name in _ARITHMETIC:
            for number in (n for n in values if isinstance(n, Size)):
                number.change(f"{name} with the number of channels in {self._layer() or 'the network itself'}")
        if name not in _HANDLED:
            return func(*args, **kwargs)
        if name in _CONVOLUTIONS:  # the number of groups comes last
            kwargs = dict(sorted(kwargs.items(), key=lambda item: item[0] == "groups"))
            values = [*args, *kwargs.values()]
        if name in _PLACES:
            self.ledger.follows = all(isinstance(n, Size) and n.follows for n in _places(name, values))
        out = func(*args, **kwargs)
        self.ledger.follows = False
        with aside():
            return self._sized(name, values, out)

    def _sized(self, name: str, values: list[Any], out: Any) -> Any:
        """The result, or sizes that know their channels in its place."""
        if isinstance(out, torch.Size):
            layers = labels_of(values[0]).layers
            return torch.Size([size_of(n, self.ledger, layers, d) for d, n in enumerate(out)])
        if name == "numel" and values[0].ndim != 1:
            return Size.of(out, self.ledger, layers=labels_of(values[0]).layers)
        if name in ("size", "numel") and isinstance(out, int):
            axis = values[1] % values[0].ndim if name == "size" else 0
            return size_of(out, self.ledger, labels_of(values[0]).layers, axis)
        if any(isinstance(n, Size) for n in (values[-1:] if name in _CONVOLUTIONS else _numbers(values))):
            self._link(name, values, out)
        return out

    def _link(self, name: str, values: list[Any], out: Any) -> None:
        """Link the sizes among the arguments with the axes that they measure."""
        why = f"{name} in {self._layer() or 'the network itself'}"
        if name in _SHAPED:
            start = 2 if name == "unflatten" else 1
            sizes = _flat(values[start:] if name not in ("layer_norm", "rms_norm") else values[1])
            first = values[1] % values[0].ndim if name == "unflatten" else out.ndim - len(sizes)
            for axis, size in enumerate(sizes, first):
                _measure(size, out, axis, why)
        elif name in _CREATED:
            sizes = [n for n in _flat(values[name.startswith("new_") :]) if isinstance(n, int)][: out.ndim]
            _label(out, sizes)
        elif "split" in name:
            axis = values[2] if len(values) > 2 else 0
            parts = values[1] if isinstance(values[1], list | tuple) else [values[1]] * len(out)
            for part, size in zip(out, parts, strict=True):
                _measure(size, part, axis % part.ndim, why)
        elif name == "narrow":
            _measure(values[3], out, values[1] % out.ndim, why)
        elif name == "__getitem__":
            for axis, size in _bounds(values[0], values[1]):
                for layer in labels_of(values[0]).layers if size.sides else ():
                    if axis in support(layer) and int(size) <= layer.shape[axis]:
                        size.count(layer.narrow(axis, 0, int(size)), axis, why)
        elif name == "group_norm" and int(values[1]) == values[0].shape[1]:  # each channel alone
            _measure(values[1], values[0], 1, why)
        elif name in _CONVOLUTIONS and isinstance(values[-1], Size):
            groups, weight = values[-1], values[1]
            for layer in labels_of(weight).layers:
                if layer.shape[0] > 1:
                    groups.count(layer.unflatten(0, (int(groups), -1)), 0, why)


def _measure(size: Any, tensor: Tensor, axis: int, why: str) -> None:
    """If `size` is one, it is the length of this axis."""
    if isinstance(size, Size) and tensor.shape[axis] == int(size):
        layers = [layer for layer in labels_of(tensor).layers if axis in support(layer)]
        for layer in layers:
            size.count(layer, axis, why)
        if not layers and tensor.stride(axis) == 0:  # the same in every slice
            _label(tensor, [size if d == axis else 1 for d in range(tensor.ndim)])


def _label(tensor: Tensor, sizes: Sequence[int]) -> None:
    """A tensor that is the same in every slice has the channels that its sizes count."""
    layers, own = labels_of(tensor)
    for axis, size in enumerate(sizes):
        for layer, place in size.sides if isinstance(size, Size) and size.by == 1 else ():
            if support(layer) == {place}:
                layers += (layer.reshape([-1 if d == axis else 1 for d in range(tensor.ndim)]),)
    set_labels(tensor, Labels(layers, own))


def _numbers(values: Any) -> Iterator[int]:
    """Numbers among arguments, those in lists and slices included, but for starts at 0."""
    for value in values:
        if isinstance(value, slice):
            yield from _numbers((value.start, value.stop))
        elif isinstance(value, list | tuple):
            yield from _numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool) and int(value) != 0:
            yield value


def _places(name: str, values: list[Any]) -> Iterator[int]:
    """Numbers that name places on an axis, but its start and its end: bounds and steps of slices, sizes of parts."""
    if name != "__getitem__":
        yield from _numbers(values[1:2] if "split" in name else values[2:])
        return
    for item in values[1] if isinstance(values[1], tuple) else values[1:]:
        if isinstance(item, slice):
            yield from (n for n in (item.start, item.stop) if isinstance(n, int) and int(n) != 0)
            yield from () if item.step in (None, 1) else (item.step,)


def _bounds(tensor: Tensor, index: Any) -> Iterator[tuple[int, Size]]:
    """Axes and sizes at which slices of a tensor begin or end."""
    items = index if isinstance(index, tuple) else (index,)
    taken = sum(item is not None and item is not Ellipsis for item in items)
    axis = 0
    for item in items:
        if item is Ellipsis:
            axis += tensor.ndim - taken
        elif item is not None:
            if isinstance(item, slice):
                yield from ((axis, bound) for bound in (item.start, item.stop) if isinstance(bound, Size))
            axis += 1


def _flat(values: Any) -> list[Any]:
    """Sizes given one by one or as one sequence."""
    return list(values[0]) if len(values) and isinstance(values[0], list | tuple) else list(values)


@cache
def _attention() -> Callable[..., Any]:
    """PyTorch's attention, which is written in Python, without its question whether a mode takes over."""
    function = torch.nn.functional.multi_head_attention_forward
    names = function.__globals__ | {"has_torch_function": lambda *_: False}
    body = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body
