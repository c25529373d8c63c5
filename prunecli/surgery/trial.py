"""The trial: the ledger of a run of the cut network, which finds sizes and places that the code has written down.

Labels in the cut network are the units that its slices belong to. Nothing may be tied there that was not tied before: a
mismatch means that an operation does not follow the cut, and its units are fixed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunecli.surgery.ledger import FIXED, Ledger, Side
from prunecli.surgery.structure import Plan, Structure


class Trial(Ledger):
    """A ledger that checks a run after `plan` against the finished one of the whole network.

    `broken` collects nodes that do not follow the cut, and why; `keep` and `counted` are the masks of the cut.
    """

    def __init__(self, structure: Structure, plan: Plan) -> None:
        super().__init__(heads=structure.ledger.heads, whole_groups=structure.whole_groups)
        self.modes = structure.ledger.modes
        self.broken: list[tuple[Tensor, str]] = []
        self.answers = list(structure.ledger.answers)
        self.expected = structure.ledger.reshapes
        self.block_numbers = dict(structure.ledger.block_numbers)  # what labels tell of nodes, units may tell wrong
        self.keep = structure.keep_masks(plan)
        self.counted = structure.size_masks(plan)
        self._parts = structure.parts
        self._whole = structure.ledger
        self._stays = torch.ones_like(self._parts.unit, dtype=torch.bool)
        for axis in (axis for key in plan.kept for axis in structure.by_key[key].outputs):
            self._stays[self._parts.unit[self._whole.axes[axis]]] = False
        self._stays[FIXED] = True
        self._units = self._parts.root.clone()  # one that is alone on some axis has no label to follow anywhere
        left = [self._whole.axes[axis][mask] for axis, mask in self.keep.items()]
        left += [self._whole.sizes[axis][mask] for axis, mask in self.counted.items()]
        units = self._parts.root[torch.cat([self._parts.root[:0], *left])]
        place = torch.repeat_interleave(torch.tensor([*map(len, left)], dtype=torch.int64))
        most = units.new_zeros(len(left)).scatter_reduce(0, place, units, "amax")
        least = most.scatter_reduce(0, place, units, "amin")
        self._units[torch.isin(self._parts.root, least[least == most])] = FIXED

    def axis(self, tensor: str, axis: int, length: int) -> Tensor:
        """Units of the slices that are left."""
        units = self._units[self._whole.axes[tensor, axis]]
        return units[self.keep[tensor, axis]] if (tensor, axis) in self.keep else units

    def counts(self, attribute: str, item: int, value: int) -> bool:
        """As before the cut."""
        return (attribute, item) in self._whole.sizes

    def size(self, attribute: str, item: int, value: int) -> Tensor:
        """Units that are left of those that an attribute counts."""
        units = self._units[self._whole.sizes[attribute, item]]
        return units[self.counted[attribute, item]] if (attribute, item) in self.counted else units

    def answer(self, value: object) -> object:
        """On the meta device the value that the whole network got."""
        known = self.answers.pop(0) if self.answers else None
        if value is None and known is None:
            raise RuntimeError("it asks for values that the whole network does not ask for")
        return known if value is None else value

    def link(self, first: Side, second: Side, why: str) -> None:
        """Known from the whole network."""

    def tie(self, first: Tensor, second: Tensor, why: str) -> None:
        """Units at equal places must be the same, or both stay."""
        if torch.equal(first, second):
            return
        differ = (first != second) & ~(self._stays[first] & self._stays[second])
        if bool(differ.any()):
            nodes = torch.cat([x.expand(differ.shape)[differ] for x in (first, second)])
            self.broken.append((nodes, f"{why} does not follow a cut of its channels"))

    def reshape(self, split: Sequence[Tensor], layers: Sequence[Tensor], shape: Sequence[int], why: str) -> None:
        """Whatever shape a tensor takes, a cut shortens only axes that units run along."""
        before, size = self.expected.get(self.place, (layers, shape))
        for d in (d for d in range(len(size)) if shape[d : d + 1] != size[d : d + 1]):
            units = [self._parts.unit[nodes] for nodes in before]
            if all(bool((unit == unit.narrow(d, 0, 1)).all()) for unit in units):
                self.broken += [
                    (nodes, f"{why} has sizes of channels written in the code; flatten or x.shape would follow")
                    for nodes in before
                ]

    def change(self, nodes: Tensor, why: str) -> None:
        """Known from the whole network."""

    def mark(self, nodes: Tensor, role: str) -> None:
        """Known from the whole network."""


def trial_plan(structure: Structure) -> Plan:
    """Every other unit goes; of three one, since a unit that is left alone shows little."""
    return Plan({g.key: list(range(1, g.units, 2 if g.units != 3 else 1)) for g in structure.groups if g.prunable})
