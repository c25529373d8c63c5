"""Learning curves: training loss and accuracy by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from prunecli.reporting.pictures.style import Picture, drawing, epochs, figure, picture, stretch, stroke
from prunecli.reporting.row import Row


def curves(rows: Sequence[Row]) -> Picture | None:
    """Two panels with a line a checkpoint; None when no checkpoint has a curve."""
    shown = [(i, row) for i, row in enumerate(rows) if row.sidecar.metrics.curve]
    if not shown:
        return None
    with drawing():
        drawn, left, _ = beside_accuracy(shown)
        for i, row in shown:
            losses = {log.epoch: log.train["loss"] for log in row.sidecar.metrics.curve if "loss" in log.train}
            left.plot([*losses], [*losses.values()], **stroke(i, len(losses)))
        left.set_ylabel("training loss")
        stretch(left)
        caption = "Training loss and accuracy after each epoch of the run that ended in the checkpoint."
        return picture(drawn, "curves", "Learning curves", caption)


def beside_accuracy(shown: Sequence[tuple[int, Row]]) -> tuple[Figure, Any, Any]:
    """A figure of two panels by epoch: an empty one, and one of accuracy with a line for each of the checkpoints, which
    come with their places among all.
    """
    drawn = figure(3.5 + 0.2 * (len(shown) // 5))
    left, right = drawn.subplots(1, 2)
    for i, row in shown:
        points = accuracy(row)
        right.plot([*points], [*points.values()], label=row.name, **stroke(i, len(points)))
    split = " and ".join(sorted({row.sidecar.metrics.split for _, row in shown}))
    right.set_ylabel(f"top-1 on the {split} split, %")
    epochs(left, right)
    drawn.legend(loc="outside upper center", ncols=min(len(shown), 5))
    return drawn, left, right


def accuracy(row: Row) -> dict[int, float]:
    """Top-1 by epoch, in %."""
    curve = row.sidecar.metrics.curve
    return {log.epoch: 100 * log.score["top1"] for log in curve if log.score and "top1" in log.score}
