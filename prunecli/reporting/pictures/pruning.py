"""Pruning while training: what was gone after which epoch, and at what accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunecli.reporting.pictures.curves import accuracy, beside_accuracy
from prunecli.reporting.pictures.style import Picture, color, drawing, marker, picture, stroke
from prunecli.reporting.row import Row


def pruning(rows: Sequence[Row]) -> Picture | None:
    """Two panels with a line a checkpoint; None where no method was at work in the run."""
    shown = logged(rows)
    if not shown:
        return None
    with drawing():
        drawn, left, right = beside_accuracy(shown)
        for i, row in shown:
            curve, last = row.sidecar.metrics.curve, row.last
            whole = row.sums.original_macs or curve[0].method.get("macs", 0)
            macs = {log.epoch: _gone(log.method["macs"], whole) for log in curve if "macs" in log.method}
            gone = {log.epoch: 100 * log.method["sparsity"] for log in curve if "sparsity" in log.method}
            left.plot([*macs], [*macs.values()], "--", color=color(i), lw=1.2)
            left.plot([*gone], [*gone.values()], **stroke(i, len(gone)))
            run = row.sidecar.training
            if last and last.epoch == curve[-1].epoch and not (run and run.method.name):
                _end(left, i, gone, _gone(row.sums.nonzero_params, row.sums.original_params))
                _end(right, i, accuracy(row), 100 * last.values.get("top1", 0))
        left.set_ylabel("removed, %")
        caption = (
            "Left: the share of the original parameters that masks and cuts have removed after each epoch, and of the "
            "MACs (dashed). Right: accuracy after each epoch. Hollow marks: after the run, when the method has "
            "removed for good what it chose."
        )
        return picture(drawn, "pruning", "Pruning while training", caption)


def logged(rows: Sequence[Row]) -> list[tuple[int, Row]]:
    """The checkpoints that come from a run with a method at work, with their places among all."""
    return [(i, row) for i, row in enumerate(rows) if any(log.method for log in row.sidecar.metrics.curve)]


def _gone(left: float, whole: float) -> float:
    return 100 * (1 - left / whole) if whole else 0.0


def _end(axes: Any, i: int, points: dict[int, float], value: float) -> None:
    """A hollow mark for what a number, in % by epoch, became after the last epoch, where that is another one."""
    epoch = max(points, default=0)
    if points and abs(points[epoch] - value) > 1e-9:
        axes.plot([epoch, epoch], [points[epoch], value], ":", color=color(i), lw=1.2)
        axes.plot([epoch], [value], marker(i), color=color(i), markerfacecolor="white", markersize=7, clip_on=False)
