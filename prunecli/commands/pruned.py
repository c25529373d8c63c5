"""What `prune` tells: the table of groups, sums before and after."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prunecli.checkpoint import Checkpoint
from prunecli.commands.history import measured
from prunecli.methods.outcome import Row, by_reason
from prunecli.sidecar import Metrics, Score
from prunecli.surgery.compensate import Folded
from prunecli.surgery.structure import layer_of


@dataclass(frozen=True)
class PruneResult:
    """What was pruned: `rows` by group or tensor, sums before and after, notes; `path` is None after a dry run.

    `unpruned` says by layer why it stays whole, `folded` what became of constant units, `uncalibrated` how good the
    result was before its batch-norm statistics were computed anew, `saved` what each cut alone would save.
    """

    checkpoint: Checkpoint
    path: Path | None
    rows: list[Row]
    before: dict[str, int]
    after: dict[str, int]
    notes: list[str]
    unpruned: dict[str, str]
    folded: Folded | None = None
    uncalibrated: Metrics | None = None
    saved: dict[str, dict[str, int]] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """The result for programs: MACs are multiply-adds of one example, bytes those of the weights.

        `groups` has an entry a group of units, or a tensor of single weights: the `layers` that make it, every axis
        that is cut with it as `members` (`role`: out makes the units, in reads them, norm and other go along), what
        this cut alone would have `saved` (of MACs those of layers with weights), and `why` where nothing of it goes.
        `not_pruned` has a reason for each layer in scope that stays whole.
        """
        metrics, earlier = self.checkpoint.sidecar.metrics, self.uncalibrated
        return {
            "checkpoint": str(self.path) if self.path else None,
            "sha256": self.checkpoint.sha256 if self.path else None,
            "before": self.before,
            "after": self.after,
            "split": metrics.split,
            "score": metrics.last.values if metrics.last else None,
            "test": metrics.test.values if metrics.test else None,
            "score_before_recalibration": earlier.last.values if earlier and earlier.last else None,
            "groups": [asdict(row) | {"saved": self.saved.get(row.name)} for row in self.rows],
            "not_pruned": self.unpruned,
            "folded": asdict(self.folded) if self.folded else None,
            "notes": self.notes,
        }

    def text(self) -> str:
        """The result for people: a line a group that changed, then sums; a dry run tells each group's members too."""
        changed = [row for row in self.rows if row.after < row.before]
        titles = [_title(row) for row in changed]
        shown = {key: value for key, value in self.before.items() if self._differs(key)}
        width = max(map(len, (*titles, *shown)))
        lines = [f"{self.path or 'dry run, nothing written'}: {len(changed)} of {len(self.rows)} groups pruned"]
        for title, row in zip(titles, changed, strict=True):
            lines.append(f"  {title:{width}}  {row.before:>10,} -> {row.after:>10,} {row.what}{_channels(row)}")
            lines += [] if self.path else [*_members(row), *self._saved(row)]
        for key, value in shown.items():
            left = self.after[key] / value if value else 1.0
            lines.append(f"  {key.replace('_', ' '):{width}}  {value:>10,} -> {self.after[key]:>10,}  ({left:.1%})")
        for why, layers in by_reason(self.unpruned).items():
            lines.append(f"  not pruned: {', '.join(layers)} ({why})")
        if self.folded:
            lines.append("  " + _folded(self.folded))
        metrics = self.checkpoint.sidecar.metrics
        if self.uncalibrated and self.uncalibrated.last:
            lines.append(f"  {metrics.split} before recalibration: {_values(self.uncalibrated.last)}")
        for split, score in ((metrics.split, metrics.last), ("test", metrics.test)):
            if score:
                lines.append(f"  {split}: {_values(score)}")
        return "\n".join(lines)

    def _saved(self, row: Row) -> list[str]:
        parts = [f"{value:,} {key}" for key, value in self.saved.get(row.name, {}).items()]
        return ["    alone saves " + ", ".join(parts)] if parts else []

    def _differs(self, key: str) -> bool:
        """Do masks make this sum another than the one without masks?"""
        dense = {"nonzero_params": "params", "effective_macs": "macs"}.get(key)
        return dense is None or any(sums[key] != sums[dense] for sums in (self.before, self.after))


def sums(checkpoint: Checkpoint) -> dict[str, int]:
    """Parameters, MACs and bytes of a checkpoint."""
    stored = sum(tensor.numel() * tensor.element_size() for tensor in checkpoint.weights.values())
    return measured(checkpoint) | {"bytes": stored}


def saved(source: Checkpoint, row: Row) -> dict[str, int]:
    """What a cut of this group and no other would save of `source`."""
    shapes = {m.tensor: list(source.weights[m.tensor].shape) for m in row.members if m.tensor in source.weights}
    for member in row.members:
        if member.tensor in shapes:
            shapes[member.tensor][member.axis] = member.after
    gone = {name: source.weights[name].numel() - math.prod(shape) for name, shape in shapes.items()}
    cost = source.sidecar.cost
    return {
        "params": sum(n for name, n in gone.items() if name not in cost.buffers),
        "macs": sum(n * cost.positions.get(name, 0) for name, n in gone.items()),
        "bytes": sum(n * source.weights[name].element_size() for name, n in gone.items()),
    }


def _title(row: Row) -> str:
    return row.layers[0] + (f" (and {len(row.layers) - 1} more)" if len(row.layers) > 1 else "")


def _channels(row: Row) -> str:
    """The widths of the layers, where a unit is several of their channels (in grouped convolutions)."""
    wide = [m for m in row.members if m.role == "out" and m.before != row.before]
    return f" ({wide[0].before:,} -> {wide[0].after:,} channels)" if wide else ""


def _members(row: Row) -> list[str]:
    """Which layers make the units of a group where several do, which are cut along, and which read them."""
    along, readers = dict[str, None](), dict[str, None]()
    for member in row.members:
        layer = layer_of(member.tensor) or member.tensor
        if member.role == "in":
            readers[layer] = None
        elif layer not in row.layers:
            along[layer] = None
    makers = row.layers if len(row.layers) > 1 else []
    named = (("made by", makers), ("along with", along), ("read by", readers))
    return [f"    {what} {', '.join(layers)}" for what, layers in named if layers]


def _folded(folded: Folded) -> str:
    if not folded.constant:
        return f"nothing to fold: none of {folded.removed:,} removed units added a constant to what reads it"
    text = f"{folded.folded:,} of {folded.removed:,} removed units added a constant, which went into what reads them"
    left = folded.constant - folded.folded
    return text + (f"; so did {left:,} more, where it could not" if left else "")


def _values(score: Score) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in score.values.items())
