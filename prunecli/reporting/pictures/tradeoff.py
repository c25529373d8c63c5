"""Error against multiply-adds and against parameters, with lines from each checkpoint to what was made from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prunecli.reporting.columns import count
from prunecli.reporting.pictures.labels import label
from prunecli.reporting.pictures.style import Picture, color, drawing, figure, marker, picture
from prunecli.reporting.row import Row


@dataclass(frozen=True)
class Point:
    """A checkpoint, the i-th of the report: its cost with masked weights left out and with them, and its error in %."""

    i: int
    row: Row
    cost: int
    dense: int
    error: float


def tradeoff(rows: Sequence[Row]) -> Picture | None:
    """Two panels, lower left is better; None when no checkpoint has an accuracy."""
    scored = [(i, row, top1) for i, row in enumerate(rows) if (top1 := row.metrics()["top1"]) is not None]
    if not scored:
        return None
    split = " and ".join(sorted({row.sidecar.metrics.split for _, row, _ in scored}))
    masked = any(row.masked for _, row, _ in scored)
    macs = [Point(i, row, row.sums.effective_macs, row.sums.macs, 100 * (1 - top1)) for i, row, top1 in scored]
    params = [Point(i, row, row.sums.nonzero_params, row.sums.params, 100 * (1 - top1)) for i, row, top1 in scored]
    with drawing():
        drawn = figure(3.9)
        left, right = drawn.subplots(1, 2, sharey=True)
        _panel(left, macs, "effective MACs" if masked else "MACs")
        _panel(right, params, "non-zero parameters" if masked else "parameters")
        left.set_ylabel(f"top-1 error on the {split} split, %")
        caption = "Error of the last epoch's weights; lower and further left is better."
        if any(row.parent for _, row, _ in scored):
            caption += " Grey lines lead from a checkpoint to what was made from it."
        if masked:
            caption += " Hollow marks are masked networks; a dotted line leads to what they cost in dense kernels."
        if len(scored) < len(rows):
            caption += f" {len(rows) - len(scored)} without a recorded accuracy are left out."
        return picture(drawn, "tradeoff", "Error against cost", caption)


def _panel(axes: Any, points: Sequence[Point], title: str) -> None:
    axes.set_xlabel(title)
    if _wide([value for point in points for value in (point.cost, point.dense)]):
        axes.set_xscale("log")
    if _wide([point.error for point in points]):
        axes.set_yscale("log")
    places = {point.row.name: (point.cost, point.error) for point in points}
    for point in points:
        _mark(axes, point, places.get(point.row.parent or ""))
    axes.margins(x=0.14, y=0.16)
    axes.autoscale_view()
    low, high = axes.get_xlim()
    # Room for the labels, which are to the right of their marks.
    axes.set_xlim(low, high * (high / low) ** 0.12 if axes.get_xscale() == "log" else high + 0.12 * (high - low))
    _ticks(axes.xaxis, count)
    _ticks(axes.yaxis, "{:g}".format)
    label(axes, [(point.row.name, point.cost, point.error) for point in points])


def _mark(axes: Any, point: Point, origin: tuple[float, float] | None) -> None:
    x, y, shade = point.cost, point.error, color(point.i)
    if origin:
        arrow = {"arrowstyle": "-|>", "color": "#b8c0ca", "lw": 1.1, "shrinkA": 6, "shrinkB": 6}
        axes.annotate("", (x, y), origin, arrowprops=arrow)
    if point.row.masked:
        axes.plot([x, point.dense], [y, y], ":", color=shade, lw=1.2, zorder=2)
    look = {"color": shade, "markerfacecolor": "white" if point.row.masked else shade, "markeredgewidth": 1.8}
    axes.plot([x], [y], marker(point.i), markersize=8, zorder=3, **look)


def _wide(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows these better."""
    return min(values) > 0 and max(values) > 4 * min(values)


def _ticks(axis: Any, written: Callable[[float], str]) -> None:
    axis.set_major_formatter(lambda value, _: written(value))
    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        between = "25" if high < 300 * low else ""  # a short range needs numbers between the powers of ten
        axis.set_minor_formatter(lambda value, _: written(value) if f"{value:e}"[0] in between else "")
