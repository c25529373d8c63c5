"""How many parameters a network has left when channels go, fast enough to be asked in every step."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor, nn

from prunecli.surgery import Group
from prunecli.surgery.ledger import Axis


class Sizes:
    """The slices of all parameters by the unit that each belongs to; units are numbered through all groups.

    `axes` are the axes that lose slices, `unit` has the unit of each slice of theirs, one axis after another, `units`
    where a slice belongs to none. `whole_axes` are the axes of which one unit has to stay: the number of an axis,
    ascending, and a unit of it [n each].
    """

    def __init__(self, groups: Mapping[str, Group], parameters: Mapping[str, nn.Parameter]) -> None:
        lengths = [group.units for group in groups.values()]
        self.units = sum(lengths)
        self.first = dict(zip(groups, accumulate(lengths, initial=0), strict=False))
        sets = [torch.tensor(units) + self.first[key] for key, group in groups.items() for units in group.whole_axes]
        self.whole_axes = torch.arange(len(sets)).repeat_interleave(torch.tensor([*map(len, sets)])), torch.cat(sets)
        self.axes: dict[Axis, Tensor] = {}
        for key, group in groups.items():
            for member in (member for member in group.members if member.tensor in parameters):
                new = torch.full_like(member.unit, self.units)
                unit = self.axes.setdefault((member.tensor, member.axis), new)
                own = member.unit >= 0
                unit[own] = self.first[key] + member.unit[own]
        self.unit = torch.cat([*self.axes.values()])
        self.lengths = [len(unit) for unit in self.axes.values()]
        self._axis = torch.arange(len(self.axes)).repeat_interleave(torch.tensor(self.lengths))
        self.places: dict[str, list[int]] = {}  # of each parameter's axes among `axes`
        for number, (name, _) in enumerate(self.axes):
            self.places.setdefault(name, []).append(number)
        most = max(map(len, self.places.values()))
        none = len(self.axes)  # an axis of length 1, for parameters with fewer than `most`
        self._tensors = torch.tensor([p + [none] * (most - len(p)) for p in self.places.values()])
        shapes = {name: parameters[name].shape for name in self.places}
        cut = {name: [axis for tensor, axis in self.axes if tensor == name] for name in self.places}
        rest = {name: [n for axis, n in enumerate(shape) if axis not in cut[name]] for name, shape in shapes.items()}
        self._rest = torch.tensor([torch.Size(sizes).numel() for sizes in rest.values()])
        self.others = sum(p.numel() for name, p in parameters.items() if name not in self.places)

    def gone(self, kept: Tensor) -> Tensor:
        """Which slices go, bool, as in `unit`, when of the units those stay that are true in `kept` [units]."""
        return ~torch.cat([kept, kept.new_ones(1)])[self.unit]

    def parameters(self, kept: Tensor) -> int:
        """How many parameters are left then."""
        lengths = torch.zeros(len(self.axes) + 1, dtype=torch.int64)
        lengths.index_add_(0, self._axis, (~self.gone(kept)).long())
        lengths[-1] = 1
        return self.others + int((self._rest * lengths[self._tensors].prod(1)).sum())
