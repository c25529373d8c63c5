"""Learning curves: training loss and accuracy by epoch."""

from __future__ import annotations

from collections.abc import Sequence

from prunecli.reporting.pictures.style import Picture, drawing, epochs, figure, picture, stretch, stroke
from prunecli.reporting.row import Row


def curves(rows: Sequence[Row]) -> Picture | None:
    """Two panels with a line a checkpoint; None when no checkpoint has a curve."""
    shown = [(i, row) for i, row in enumerate(rows) if row.sidecar.metrics.curve]
    if not shown:
        return None
    split = " and ".join(sorted({row.sidecar.metrics.split for _, row in shown}))
    with drawing():
        drawn = figure(3.5 + 0.2 * (len(shown) // 5))
        left, right = drawn.subplots(1, 2)
        for i, row in shown:
            curve = row.sidecar.metrics.curve
            look = stroke(i, len(curve))
            losses = [(log.epoch, log.train["loss"]) for log in curve if "loss" in log.train]
            left.plot([epoch for epoch, _ in losses], [loss for _, loss in losses], label=row.name, **look)
            scores = [(log.epoch, 100 * log.score["top1"]) for log in curve if log.score and "top1" in log.score]
            right.plot([epoch for epoch, _ in scores], [top1 for _, top1 in scores], **look)
        left.set_ylabel("training loss")
        stretch(left)
        right.set_ylabel(f"top-1 on the {split} split, %")
        epochs(left, right)
        drawn.legend(loc="outside upper center", ncols=min(len(shown), 5))
        caption = "Training loss and accuracy after each epoch of the run that ended in the checkpoint."
        return picture(drawn, "curves", "Learning curves", caption)
