"""What a pruning step did, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from prunecli.checkpoint import Checkpoint


@dataclass(frozen=True)
class Row:
    """A group of units by its key, or a weight tensor by its name; `members` counts the tensor axes cut with it."""

    name: str
    layers: list[str]
    what: str  # "units" or "weights"
    members: int
    before: int
    after: int


@dataclass(frozen=True)
class Outcome:
    """A pruned checkpoint, what went from where, and what the user should know."""

    checkpoint: Checkpoint
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
