"""Pruning while training: what was gone after which epoch, and at what accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunecli.reporting.pictures.style import Picture, color, drawing, epochs, figure, marker, picture, stroke
from prunecli.reporting.row import Row

Points = dict[int, float]  # by epoch, in %


def pruning(rows: Sequence[Row]) -> Picture | None:
    """Two panels with a line a checkpoint; None where no method was at work in the run."""
    shown = logged(rows)
    if not shown:
        return None
    split = " and ".join(sorted({row.sidecar.metrics.split for _, row in shown}))
    with drawing():
        drawn = figure(3.5 + 0.2 * (len(shown) // 5))
        left, right = drawn.subplots(1, 2)
        for i, row in shown:
            curve, last = row.sidecar.metrics.curve, row.last
            whole = row.sums.original_macs or curve[0].method.get("macs", 0)
            macs = {log.epoch: _gone(log.method["macs"], whole) for log in curve if "macs" in log.method}
            gone = {log.epoch: 100 * log.method["sparsity"] for log in curve if "sparsity" in log.method}
            top1 = {log.epoch: 100 * log.score["top1"] for log in curve if log.score and "top1" in log.score}
            left.plot(*_xy(macs), "--", color=color(i), lw=1.2)
            left.plot(*_xy(gone), label=row.name, **stroke(i, len(gone)))
            right.plot(*_xy(top1), **stroke(i, len(top1)))
            if last and last.epoch == curve[-1].epoch:
                _end(left, i, gone, _gone(row.sums.nonzero_params, row.sums.original_params))
                _end(right, i, top1, 100 * last.values.get("top1", 0))
        left.set_ylabel("removed, %")
        right.set_ylabel(f"top-1 on the {split} split, %")
        epochs(left, right)
        drawn.legend(loc="outside upper center", ncols=min(len(shown), 5))
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


def _xy(points: Points) -> tuple[list[int], list[float]]:
    return [*points], [*points.values()]


def _end(axes: Any, i: int, points: Points, value: float) -> None:
    """A hollow mark for what a number became after the last epoch, where that is another one."""
    epoch = max(points, default=0)
    if points and abs(points[epoch] - value) > 1e-9:
        axes.plot([epoch, epoch], [points[epoch], value], ":", color=color(i), lw=1.2)
        axes.plot([epoch], [value], marker(i), color=color(i), markerfacecolor="white", markersize=7, clip_on=False)
