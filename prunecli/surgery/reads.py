"""Reads: what convolutions and linear layers see of chosen slices of their inputs, in one run after another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# of each operation that reads: its arguments for the input, the weight and the bias; "conv" are all convolutions
_READERS = {
    "conv": ("input", "weight", "bias"),
    "linear": ("input", "weight", "bias"),
    "addmm": ("mat1", "mat2", "self"),
}
ULPS = 64  # rounding that equal sums in another order may differ by


class Gone(NamedTuple):
    """The slices of a weight that read removed units, and the numbers of these units."""

    slices: Tensor
    units: Tensor
    length: int

    def over(self, channels: int) -> Gone:
        """The same in an input of a grouped convolution, whose groups have these slices each."""
        starts = torch.arange(0, channels, self.length)
        return Gone((starts[:, None] + self.slices).flatten(), self.units.repeat(len(starts)), channels)


@dataclass
class Read:
    """An operation that reads removed units, and their slices (channels first) in the first run.

    `alone` is the operation without bias; `same` says which slices no later run has changed; `followers` are the
    operations that read the result, a running mean where one is a batch norm.
    """

    tensor: str
    shape: torch.Size
    axis: int
    gone: Gone
    values: Tensor
    same: Tensor
    alone: Callable[[Tensor], Tensor]
    bias: Tensor | None
    followers: list[Tensor | None] = field(default_factory=list)

    @property
    def sink(self) -> Tensor | None:
        """What can take up a constant that is added to the result."""
        return self.bias if self.bias is not None or len(self.followers) != 1 else self.followers[0]

    def compare(self, values: Tensor) -> None:
        """Tell slices that are the same in this run from those that are not."""
        if values.shape != self.values.shape:
            self.same[:] = False
            return
        apart = (values - self.values).flatten(1).abs().amax(1)
        small = ULPS * torch.finfo(values.dtype).eps * self.values.flatten(1).abs().amax(1)
        self.same &= (apart <= small).cpu()

    def added(self) -> Tensor:
        """What the constant slices add to each output channel at every place, [channels, places]."""
        alone = self.values.new_zeros(self.shape).movedim(self.axis, 0)
        alone[self.gone.slices[self.same]] = self.values[self.same]
        return self.alone(alone.movedim(0, self.axis)).movedim(self.axis, 0).flatten(1)


class ReadMode(TorchDispatchMode):
    """Watches what is read of removed units, in one run after another."""

    def __init__(self, own: Mapping[str, Tensor], gone: Mapping[str, Gone]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads: list[Read] = []
        self.uses: Counter[int] = Counter()  # of each bias and running mean, by id
        self._own = {id(tensor): name for name, tensor in own.items()}
        self._gone = gone
        self._first = True
        self._place = 0

    def run(self, network: nn.Module, inputs: tuple[Any, ...]) -> None:
        """One run of the network."""
        self._place = 0
        with self:
            output = network(*inputs)
        for tensor in tree_leaves(output):
            self._follow(tensor, None)
        self._first = False
        if self._place != len(self.reads):  # it takes another way on other inputs
            for read in self.reads:
                read.same[:] = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        op = func._schema.name.removeprefix("aten::")
        mean = self._mine(named.get("running_mean")) if op == "batch_norm" and not named["training"] else None
        for tensor in tree_leaves((args, kwargs)):
            self._follow(tensor, mean if tensor is named.get("input") else None)
        out = func(*args, **kwargs)
        names = _READERS.get("conv" if op.startswith("conv") else op)
        bias = self._mine(named.get(names[2])) if names and named.get("beta", 1) == 1 else None
        if self._first:
            self.uses.update(id(sink) for sink in (mean, bias) if sink is not None)
        if names and self._own.get(id(named[names[1]])) in self._gone:
            self._read(func, named, names, bias, out)
        return out

    def _mine(self, tensor: Tensor | None) -> Tensor | None:
        return tensor if id(tensor) in self._own else None

    def _follow(self, tensor: Any, mean: Tensor | None) -> None:
        if self._first and isinstance(read := getattr(tensor, "_prunecli_read", None), Read):
            read.followers.append(mean)

    def _read(
        self, func: Any, named: dict[str, Any], names: tuple[str, str, str], bias: Tensor | None, out: Tensor
    ) -> None:
        x, weight = named[names[0]], named[names[1]]
        axis = x.ndim - weight.ndim + 1 if names[0] == "input" and weight.ndim > 2 else x.ndim - 1
        gone = self._gone[self._own[id(weight)]].over(x.shape[axis])
        values = x.movedim(axis, 0)[gone.slices]
        self._place += 1
        if not self._first:
            if self._place <= len(self.reads):
                self.reads[self._place - 1].compare(values)
            return

        def alone(only: Tensor) -> Tensor:
            changed = named | {names[0]: only, names[2]: None if names[0] == "input" else only.new_zeros(1)}
            places = [a for a in func._schema.arguments if a.name in changed]
            result: Tensor = func(
                *(changed[a.name] for a in places if not a.kwarg_only),
                **{a.name: changed[a.name] for a in places if a.kwarg_only},
            )
            return result

        read = Read(
            self._own[id(weight)], x.shape, axis, gone, values, torch.ones(len(values), dtype=torch.bool), alone, bias
        )
        self.reads.append(read)
        out._prunecli_read = read  # type: ignore[attr-defined]
