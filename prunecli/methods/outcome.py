"""What a pruning step did, as plain data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from prunecli.checkpoint import Checkpoint
from prunecli.surgery.compensate import Folded


@dataclass(frozen=True)
class Axis:
    """An axis of a tensor that a group is cut along: `role` is that of `surgery.Member`, lengths before and after."""

    tensor: str
    axis: int
    role: str
    before: int
    after: int


@dataclass(frozen=True)
class Row:
    """A group of units by its key, or a weight tensor by its name; `why` says why nothing of it goes.

    `layers` make the units, `members` are all axes that lose slices with them (none for single weights).
    """

    name: str
    layers: list[str]
    what: str  # "units" or "weights"
    before: int
    after: int
    members: list[Axis] = field(default_factory=list)
    why: str | None = None


@dataclass(frozen=True)
class Outcome:
    """A pruned checkpoint, what went from where, and what the user should know.

    `unpruned` has a reason for every layer in scope that stays as it is, `named` are the layers that were asked for by
    name, `short` says that less went than was asked for: of several rounds, that of the last one holds. `notes` hold of
    every round, and `folded` says what became of removed units that were constant.
    """

    checkpoint: Checkpoint
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    unpruned: dict[str, str] = field(default_factory=dict)
    named: Collection[str] = ()
    short: str | None = None
    folded: Folded | None = None

    @property
    def warnings(self) -> list[str]:
        """Everything that deserves a warning."""
        return [*left_alone(self.unpruned, self.named), *([self.short] if self.short else []), *self.notes]


def left_alone(unpruned: Mapping[str, str], named: Collection[str]) -> list[str]:
    """A note a reason on the layers that were asked for by name and stay as they are."""
    reasons = by_reason({layer: why for layer, why in unpruned.items() if layer in named})
    return [f"{listed(layers)} named but not pruned: {why}" for why, layers in reasons.items()]


def by_reason(layers: Mapping[str, str]) -> dict[str, list[str]]:
    """Layers by the reason that each has."""
    reasons: dict[str, list[str]] = {}
    for layer, why in layers.items():
        reasons.setdefault(why, []).append(layer)
    return reasons


def listed(layers: Sequence[str]) -> str:
    """The first layers by name, and how many more there are."""
    return ", ".join(layers[:6]) + (f" and {len(layers) - 6} more" if len(layers) > 6 else "")
