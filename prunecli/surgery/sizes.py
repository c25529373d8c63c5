"""Sizes that know their channels: a network's integer attributes and shapes while it is traced.

`x.view(n, self.num_heads, self.head_dim)` follows a cut if the attributes do. So every integer that a module holds is
an axis of its own, with as many nodes as it counts, and every size read from a shape keeps the labels of its axis.
Where such a number becomes the length of an axis, or equals another, the two are linked: what is left of one is left
of the other. Numbers computed from sizes follow by themselves; the trial confirms that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from prunecli.surgery.layers import support
from prunecli.surgery.ledger import Ledger, Side

_KNOWN = (_ConvNd, _BatchNorm, nn.Linear, nn.Embedding)


@contextmanager
def aside() -> Iterator[None]:
    """Work on labels while a network runs, unseen by the modes of its trace."""
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
        yield


class Size(int):
    """An integer with the axes that it counts, or one of `by` equal blocks of them; none if it was computed.

    `layers` are those whose cut changes it. `follows` tells sizes, and sums and multiples of them, from numbers such as
    `n - 1`, which are other places after a cut.
    """

    ledger: Ledger
    sides: tuple[Side, ...]
    by: int  # a Size where the number of blocks may be cut too
    layers: tuple[Tensor, ...]
    follows: bool = True

    @classmethod
    def of(
        cls, value: int, ledger: Ledger, sides: tuple[Side, ...] = (), by: int = 1, layers: tuple[Tensor, ...] = ()
    ) -> Size:
        """A size `value` of these sides, of which it counts a block, or one computed from sizes of these layers."""
        size = cls(value)
        size.ledger, size.sides, size.by, size.layers = ledger, sides, by, layers or tuple(x for x, _ in sides)
        return size

    def count(self, layer: Tensor, axis: int, why: str) -> None:
        """This is the length of an axis of a tensor with this layer: link them."""
        with aside():
            for side in self._blocks(layer, axis, why):
                self.ledger.link(side, (layer, axis), why)

    def _blocks(self, layer: Tensor, axis: int, why: str) -> list[Side]:
        """The axes that this counts: of blocks, their number or their length, whichever it is on the axis given."""
        if self.by == 1:
            return list(self.sides)
        result = []
        first = layer.movedim(axis, 0).flatten(1)[:, 0] if layer.ndim > 1 else layer
        for number, (own, place) in enumerate(self.sides):
            blocks = own.unflatten(place, (int(self), int(self.by)))
            many = blocks.movedim(place, 0).flatten(1)[:, 0].equal(first)  # channel 0, `by`, 2 `by`, …: so many blocks
            if self.ledger.block_numbers.setdefault((self.ledger.place, why, axis, number), many):
                self.ledger.tie(blocks, blocks.narrow(place + 1, 0, 1), why)
                result.append((blocks, place))
                continue
            blocks = own.unflatten(place, (int(self.by), int(self)))
            heads = isinstance(self.by, Size) and self.ledger.heads
            self.ledger.tie(blocks, blocks.narrow(place + heads, 0, 1), why)
            if isinstance(self.by, Size):
                self.by.count(blocks, place, why)
            result.append((blocks, place + 1))
        return result

    def change(self, why: str) -> None:
        """The network computes with this number: a cut changes what it computes."""
        with aside():
            for layer in self.layers:
                self.ledger.change(layer, why)

    def __eq__(self, other: object) -> bool:
        same = int.__eq__(self, other) is True
        if same and isinstance(other, Size):
            for side in other.sides if other.by == 1 else ():
                self.count(*side, "a comparison of sizes")
        elif same and self.by == 1:
            with aside():
                for layer, _ in self.sides:
                    self.ledger.fix(layer, f"a size compared with the number {int(self)}")
        return same

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__

    def __floordiv__(self, other: Any) -> Any:
        """A block of one axis; blocks of blocks are merely computed."""
        if self.by == 1 and isinstance(other, int) and other > 0 and int(self) % int(other) == 0:
            size = Size.of(int(self) // int(other), self.ledger, self.sides, other, self.layers)
            size.follows = bool(self.sides)
            return size
        return self._computed(int.__floordiv__, other)

    def __truediv__(self, other: Any) -> Any:
        self.change("a division by the number of channels")
        return int(self) / other

    def __rtruediv__(self, other: Any) -> Any:
        self.change("a division by the number of channels")
        return other / int(self)

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        self.change("a power of the number of channels")
        return pow(int(self), other, modulo)

    def __float__(self) -> float:
        self.change("a function of the number of channels")
        return float(int(self))

    def _computed(self, operation: Callable[[int, int], Any], other: Any) -> Any:
        if isinstance(other, float):  # which works the result out by itself
            self.change("a function of the number of channels")
        layers = self.layers + (other.layers if isinstance(other, Size) else ())
        result = operation(int(self), int(other) if isinstance(other, Size) else other)
        if type(result) is not int:
            return result
        size = Size.of(result, self.ledger, layers=layers)
        kept = other.follows if isinstance(other, Size) else (operation is int.__mul__ and other > 0) or other == 0
        size.follows = self.follows and kept
        return size

    def __add__(self, other: Any) -> Any:
        return self._computed(int.__add__, other)

    def __sub__(self, other: Any) -> Any:
        return self._computed(int.__sub__, other)

    def __mul__(self, other: Any) -> Any:
        return self._computed(int.__mul__, other)

    def __mod__(self, other: Any) -> Any:
        return self._computed(int.__mod__, other)

    def __rsub__(self, other: Any) -> Any:
        return self._computed(int.__rsub__, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return self._computed(int.__rfloordiv__, other)

    def __lshift__(self, other: Any) -> Any:
        return self._computed(int.__lshift__, other)

    def __neg__(self) -> Any:
        return self._computed(int.__mul__, -1)

    def __abs__(self) -> Any:
        return self if self >= 0 else -self

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rpow__(self, other: Any, modulo: Any = None) -> Any:
        self.change("a power of the number of channels")
        return pow(other, int(self), modulo)

    __radd__, __rmul__ = __add__, __mul__


def size_of(value: int, ledger: Ledger, layers: tuple[Tensor, ...], axis: int) -> int:
    """The length of an axis of a tensor with these layers: a plain number where none of them runs along it."""
    sides = tuple((layer, axis) for layer in layers if axis in support(layer))
    return Size.of(value, ledger, sides) if sides else value


def follow_attributes(network: nn.Module, ledger: Ledger) -> None:
    """Replace the integers that the modules of a network hold, alone or in lists, by sizes with nodes of their own.

    Those of PyTorch's own layers that no code looks at (`out_channels`) are left; they follow from the layer's tensors.
    """
    for name, module in network.named_modules():
        if isinstance(module, _KNOWN) and type(module).__module__.startswith("torch.nn."):
            continue
        for attribute, value in list(vars(module).items()):
            if attribute.startswith("_"):
                continue
            key = f"{name}.{attribute}" if name else attribute
            if type(value) is int and ledger.counts(key, 0, value):
                setattr(module, attribute, _own(ledger, key, 0, value))
            elif type(value) in (list, tuple, torch.Size) and value and all(type(v) is int for v in value):
                items = [_own(ledger, key, i, v) if ledger.counts(key, i, v) else v for i, v in enumerate(value)]
                setattr(module, attribute, items if isinstance(value, list) else tuple(items))


def _own(ledger: Ledger, key: str, item: int, value: int) -> Size:
    return Size.of(value, ledger, ((ledger.size(key, item, value), 0),))
