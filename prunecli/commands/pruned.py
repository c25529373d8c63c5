"""What `prune` tells: the table of groups, sums before and after."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunecli.checkpoint import Checkpoint
from prunecli.commands.history import measured
from prunecli.methods.outcome import Row


@dataclass(frozen=True)
class PruneResult:
    """What was pruned: `rows` by group or tensor, sums before and after, notes; `path` is None after a dry run."""

    checkpoint: Checkpoint
    path: Path | None
    rows: list[Row]
    before: dict[str, int]
    after: dict[str, int]
    notes: list[str]

    def data(self) -> dict[str, Any]:
        """The result for programs: MACs are multiply-adds of one example, bytes those of the weights."""
        metrics = self.checkpoint.sidecar.metrics
        return {
            "checkpoint": str(self.path) if self.path else None,
            "sha256": self.checkpoint.sha256 if self.path else None,
            "before": self.before,
            "after": self.after,
            "split": metrics.split,
            "score": metrics.last.values if metrics.last else None,
            "test": metrics.test.values if metrics.test else None,
            "groups": [asdict(row) for row in self.rows],
            "notes": self.notes,
        }

    def text(self) -> str:
        """The result for people: a line a group that changed, then sums."""
        changed = [row for row in self.rows if row.after < row.before]
        titles = [_title(row) for row in changed]
        shown = {key: value for key, value in self.before.items() if self._differs(key)}
        width = max(map(len, (*titles, *shown)))
        lines = [f"{self.path or 'dry run, nothing written'}: {len(changed)} of {len(self.rows)} groups pruned"]
        for title, row in zip(titles, changed, strict=True):
            lines.append(f"  {title:{width}}  {row.before:>10,} -> {row.after:>10,} {row.what}")
        for key, value in shown.items():
            left = self.after[key] / value if value else 1.0
            lines.append(f"  {key.replace('_', ' '):{width}}  {value:>10,} -> {self.after[key]:>10,}  ({left:.1%})")
        metrics = self.checkpoint.sidecar.metrics
        for split, score in ((metrics.split, metrics.last), ("test", metrics.test)):
            if score:
                scores = ", ".join(f"{name} {value:.4f}" for name, value in score.values.items())
                lines.append(f"  {split}: {scores}")
        return "\n".join(lines)

    def _differs(self, key: str) -> bool:
        """Do masks make this sum another than the one without masks?"""
        dense = {"nonzero_params": "params", "effective_macs": "macs"}.get(key)
        return dense is None or any(sums[key] != sums[dense] for sums in (self.before, self.after))


def sums(checkpoint: Checkpoint) -> dict[str, int]:
    """Parameters, MACs and bytes of a checkpoint."""
    stored = sum(tensor.numel() * tensor.element_size() for tensor in checkpoint.weights.values())
    return measured(checkpoint) | {"bytes": stored}


def _title(row: Row) -> str:
    return row.layers[0] + (f" (and {len(row.layers) - 1} more)" if len(row.layers) > 1 else "")
