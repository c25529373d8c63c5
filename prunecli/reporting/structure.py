"""What is tied to what in a network, and why, as plain data: for the picture, the table and the JSON of a report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunecli.surgery.reasons import Join


ROOM = 60  # letters of names in a line of text


@dataclass(frozen=True)
class Line:
    """A layer that computes, in call order; `kind` is as in `measure.Layer`, `width` its output channels."""

    name: str
    kind: str
    width: int


@dataclass(frozen=True)
class Member:
    """An axis of a tensor of which `slices` are a group's; `role` is as in `surgery.Member`."""

    tensor: str
    axis: int
    role: str
    slices: int


@dataclass(frozen=True)
class Tied:
    """Layers that can only be cut together. `units` can be removed; where there are none, `reason` says why.

    `layers` make the units, `readers` consume them, `carriers` (depthwise convolutions) hand them on. `joins` has what
    tied the layers, `members` every tensor axis that is cut along. `changes_function`: see `surgery.Group`.
    """

    key: str
    units: int
    layers: tuple[str, ...]
    readers: tuple[str, ...]
    carriers: tuple[str, ...]
    joins: tuple[Join, ...]
    members: tuple[Member, ...]
    reason: str | None
    changes_function: str | None

    @property
    def why(self) -> str:
        """`add in layer1.{0..2}`; empty where there is only one layer."""
        where: dict[str, dict[str, None]] = {}
        for join in self.joins:
            where.setdefault(join.operation, {})[join.layer or "the network itself"] = None
        return "; ".join(f"{operation} in {brief([*layers])}" for operation, layers in where.items())

    @property
    def verdict(self) -> str:
        """Why the layers are tied, why they cannot be cut, what else a cut does; empty where nothing is special."""
        tied = f"tied by {self.why}" if self.joins else ""
        fixed = f"cannot be cut: {self.reason}" if self.reason else ""
        changes = f"a cut changes the function: {self.changes_function}" if self.changes_function else ""
        return "; ".join(text for text in (fixed, tied, changes) if text)

    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "key": self.key,
            "units": self.units,
            "layers": list(self.layers),
            "readers": list(self.readers),
            "carriers": list(self.carriers),
            "tied_by": [asdict(join) for join in self.joins],
            "reason": self.reason,
            "changes_function": self.changes_function,
            "members": [asdict(member) for member in self.members],
        }

    def of(self, line: Line) -> str:
        """What is to be said of a layer's channels, where they are this group's; empty where it only reads them."""
        if line.name in self.carriers:
            return f"hands on the units of {self.key}"
        if line.name not in self.layers:
            return ""
        if line.name != self.layers[0]:
            return self._tie(line.name) + self._extent(line)
        others = _some(self.layers[1:])
        if self.reason:
            return f"cannot be cut: {self.reason}" + (f"; and with it {others}" if others else "")
        each = self._slices(line) // self.units
        text = f"{self.units} units" + (f" of {each} channels" if each > 1 else "") + self._extent(line)
        text += f", together with {others}" if others else ", its own" if each > 1 else " of its own"
        return text + (f"; a cut changes the function: {self.changes_function}" if self.changes_function else "")

    def _extent(self, line: Line) -> str:
        """How many of a layer's channels are this group's, where that is not all of them."""
        slices = self._slices(line)
        return f" ({slices} of {line.width} channels)" if slices < line.width and not self.reason else ""

    def _slices(self, line: Line) -> int:
        out = (m for m in self.members if m.role == "out" and m.tensor.rpartition(".")[0] == line.name)
        return max((member.slices for member in out), default=line.width)

    def _tie(self, layer: str) -> str:
        join = next((join for join in self.joins if layer in join.joined), None)
        if join is None:
            return f"tied to {self.key}"
        if join.layer == layer and join.operation.startswith("conv"):
            return f"tied to {', '.join(name for name in join.joined if name != layer)}: its convolution is grouped"
        return f"tied by {join.operation} in {join.layer or 'the network itself'}"


def brief(names: Sequence[str]) -> str:
    """Names with runs of numbers as a shell writes them: conv1, layer{1..4}.{0..2}.conv2."""
    families: dict[str, list[list[str]]] = {}
    for name in names:
        parts = re.split(r"(\d+)", name)  # texts, and numbers between them
        families.setdefault("#".join(parts[::2]), []).append(parts)
    shorter = [text for family in families.values() for text in _shorter(family)]
    return brief(shorter) if len(shorter) < len(names) else ", ".join(shorter)


def _shorter(family: list[list[str]]) -> list[str]:
    """Runs along the last number that makes any."""
    for place in range(len(family[0]) - 2, 0, -2):
        if len(runs := _runs(family, place)) < len(family):
            return runs
    return ["".join(parts) for parts in family]


def _runs(family: list[list[str]], place: int) -> list[str]:
    """One text for each run of names that differ in the number at `place` alone."""
    runs: list[list[list[str]]] = []
    for parts in family:
        last = runs[-1][-1] if runs else []
        same = last[:place] == parts[:place] and last[place + 1 :] == parts[place + 1 :]
        if same and int(parts[place]) == int(last[place]) + 1:
            runs[-1].append(parts)
        else:
            runs.append([parts])
    for run in runs:
        if len(run) > 1:
            run[0] = [*run[0][:place], f"{{{run[0][place]}..{run[-1][place]}}}", *run[0][place + 1 :]]
    return ["".join(run[0]) for run in runs]


def _some(names: Sequence[str]) -> str:
    """All names where a line has room for them, else as many as it has, at least one."""
    if len(whole := brief(names)) <= ROOM:
        return whole
    shown = max(1, sum(1 for i in range(len(names)) if len(", ".join(names[: i + 1])) <= ROOM))
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


@dataclass(frozen=True)
class Outline:
    """The layers of a network, the groups that they form, the layers that never ran, and those that are gone."""

    lines: tuple[Line, ...]
    groups: tuple[Tied, ...]
    never_called: tuple[str, ...]
    absent: tuple[str, ...] = ()

    def of(self, line: Line) -> str:
        """What is to be said of the channels of a layer."""
        return "; ".join(text for group in self.groups if (text := group.of(line)))

    @property
    def summary(self) -> str:
        """How many groups there are, of which kinds."""
        prunable = [group for group in self.groups if not group.reason]
        shared = [group for group in prunable if len(group.layers) > 1]
        fixed = [layer for group in self.groups if group.reason for layer in group.layers]
        parts = [f"Of {len(self.lines)} layers {len(prunable) - len(shared)} can be cut alone"]
        if shared:
            tied = sum(len(group.layers) for group in shared)
            groups = "1 group" if len(shared) == 1 else f"{len(shared)} groups"
            parts.append(f"{tied} only together with others, in {groups}")
        if carriers := {layer for group in self.groups for layer in group.carriers}:
            parts.append(f"{len(carriers)} along with those whose channels they hand on")
        if fixed:
            parts.append(f"{len(fixed)} not at all")
        if self.never_called:
            parts.append(f"{len(self.never_called)} never ran on these inputs ({', '.join(self.never_called)})")
        if self.absent:
            parts.append(f"and {len(self.absent)} more are gone ({brief(self.absent)})")
        return ", ".join(parts) + "."

    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "groups": [group.data() for group in self.groups],
            "never_called": list(self.never_called),
            "absent": list(self.absent),
        }
