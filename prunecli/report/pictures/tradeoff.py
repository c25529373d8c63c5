"""Error against multiply-adds and against parameters, with lines from each checkpoint to what was made from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prunecli.report.columns import count
from prunecli.report.pictures.style import FAINT, INK, Picture, color, drawing, figure, marker, picture
from prunecli.report.row import Row

# Where a label may be, in points from its mark, best first.
PLACES = ((8, -3), (8, 9), (8, -15), (-8, -3), (-8, 9), (-8, -15), (8, 21), (-8, 21), (8, -27), (-8, -27))


def tradeoff(rows: Sequence[Row]) -> Picture | None:
    """Two panels, lower left is better; None when no checkpoint has an accuracy."""
    shown = [(i, row) for i, row in enumerate(rows) if _error(row) is not None]
    if not shown:
        return None
    split = " and ".join(sorted({row.sidecar.metrics.split for _, row in shown}))
    masked = any(row.masked for _, row in shown)
    with drawing():
        drawn = figure(3.9)
        left, right = drawn.subplots(1, 2, sharey=True)
        _panel(left, shown, lambda row: row.sums.effective_macs, lambda row: row.sums.macs)
        _panel(right, shown, lambda row: row.sums.nonzero_params, lambda row: row.sums.params)
        left.set_xlabel("effective MACs" if masked else "MACs")
        right.set_xlabel("non-zero parameters" if masked else "parameters")
        left.set_ylabel(f"top-1 error on the {split} split, %")
        caption = "Error of the last epoch's weights; lower and further left is better. "
        caption += "Grey lines lead from a checkpoint to what was made from it. " if any(row.parent for row in rows) else ""
        if masked:
            caption += "Hollow marks are masked networks; a dotted line leads to what they cost in dense kernels."
        if len(shown) < len(rows):
            caption += f" {len(rows) - len(shown)} without a recorded accuracy are left out."
        return picture(drawn, "tradeoff", "Error against cost", caption.strip())


def _panel(
    axes: Any, shown: Sequence[tuple[int, Row]], cost: Callable[[Row], int], dense: Callable[[Row], int]
) -> None:
    points = {row.name: (cost(row), _error(row)) for _, row in shown}
    if _wide([value for _, row in shown for value in (cost(row), dense(row))]):
        axes.set_xscale("log")
    if _wide([error for _, error in points.values()]):
        axes.set_yscale("log")
    for i, row in shown:
        x, y = points[row.name]
        if row.parent in points:
            axes.annotate(
                "", (x, y), points[row.parent],
                arrowprops={"arrowstyle": "-|>", "color": "#b8c0ca", "lw": 1.1, "shrinkA": 6, "shrinkB": 6},
            )  # fmt: skip
        if row.masked:
            axes.plot([x, dense(row)], [y, y], ":", color=color(i), lw=1.2, zorder=2)
        face = "white" if row.masked else color(i)
        axes.plot(
            [x], [y], marker(i), color=color(i), markersize=8, markerfacecolor=face, markeredgewidth=1.8, zorder=3
        )
    axes.margins(x=0.14, y=0.16)
    axes.autoscale_view()
    low, high = axes.get_xlim()
    # Room for the labels, which are to the right of their marks.
    axes.set_xlim(low, high * (high / low) ** 0.12 if axes.get_xscale() == "log" else high + 0.12 * (high - low))
    _ticks(axes.xaxis, count)
    _ticks(axes.yaxis, "{:g}".format)
    _label(axes, [(row.name, *points[row.name]) for _, row in shown])


def _wide(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows these better."""
    return min(values) > 0 and max(values) > 4 * min(values)


def _ticks(axis: Any, written: Callable[[float], str]) -> None:
    axis.set_major_formatter(lambda value, _: written(value))
    if axis.get_scale() == "log":  # a range of less than two decades needs numbers between the powers of ten
        low, high = axis.get_view_interval()
        axis.set_minor_formatter(lambda value, _: written(value) if f"{value:e}"[0] in "25" and high < 300 * low else "")


def _label(axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Write names beside marks where they cover neither marks nor other names, as far as there is room."""
    figure = axes.figure
    figure.draw_without_rendering()  # the layout, and with it where things are
    scale = 72 / figure.dpi
    marks = [tuple(scale * axes.transData.transform((x, y))) for _, x, y in points]
    box = axes.get_window_extent()
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in marks]
    for (name, x, y), (px, py) in zip(points, marks, strict=True):
        width = 5.4 * len(name)
        boxes = []
        for dx, dy in PLACES:
            left = px + dx if dx > 0 else px + dx - width
            boxes.append((left, py + dy - 1, left + width, py + dy + 9))
        best = min(range(len(PLACES)), key=lambda i: (_overlap(boxes[i], taken) + _outside(boxes[i], box, scale), i))
        taken.append(boxes[best])
        dx, dy = PLACES[best]
        axes.annotate(
            name, (x, y), (dx, dy), textcoords="offset points", ha="left" if dx > 0 else "right", color=INK, fontsize=9
        )
    axes.tick_params(colors=FAINT)


def _overlap(box: tuple[float, ...], others: Sequence[tuple[float, ...]]) -> float:
    area = 0.0
    for other in others:
        width = min(box[2], other[2]) - max(box[0], other[0])
        height = min(box[3], other[3]) - max(box[1], other[1])
        area += max(width, 0) * max(height, 0)
    return area


def _outside(box: tuple[float, ...], axes_box: Any, scale: float) -> float:
    beyond = max(box[2] - scale * axes_box.x1, 0) + max(scale * axes_box.x0 - box[0], 0)
    below = max(box[3] - scale * axes_box.y1, 0) + max(scale * axes_box.y0 - box[1], 0)
    return 20 * (beyond + below)


def _error(row: Row) -> float | None:
    top1 = row.metrics()["top1"]
    return None if top1 is None else 100 * (1 - top1)
