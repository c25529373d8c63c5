"""Names beside the marks of a picture, where they cover neither marks nor each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunecli.reporting.pictures.style import INK

Box = tuple[float, float, float, float]  # left, bottom, right, top in points

# Where a label may be, in points from its mark, best first.
PLACES = ((8, -3), (8, 9), (8, -15), (-8, -3), (-8, 9), (-8, -15), (8, 21), (-8, 21), (8, -27), (-8, -27))


CHARACTER = 5.4  # points, of the 9 point font on average


def label(axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Write each (name, x, y) beside its mark, as far as there is room."""
    figure = axes.figure
    figure.draw_without_rendering()  # the layout, and with it where things are
    scale = 72 / figure.dpi
    marks = [scale * axes.transData.transform((x, y)) for _, x, y in points]
    window = axes.get_window_extent()
    room = (scale * window.x0, scale * window.y0, scale * window.x1, scale * window.y1)
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in marks]
    for (name, x, y), (across, up) in zip(points, marks, strict=True):
        width = CHARACTER * len(name)
        boxes = [_box(across + dx - (width if dx < 0 else 0), up + dy, width) for dx, dy in PLACES]
        cost = [_overlap(box, taken) + 20 * _outside(box, room) for box in boxes]
        best = cost.index(min(cost))
        taken.append(boxes[best])
        side = "left" if PLACES[best][0] > 0 else "right"
        axes.annotate(name, (x, y), PLACES[best], textcoords="offset points", ha=side, color=INK, fontsize=9)


def _box(left: float, baseline: float, width: float) -> Box:
    return (left, baseline - 1, left + width, baseline + 9)


def _overlap(box: Box, others: Sequence[Box]) -> float:
    """The area that `box` shares with `others`."""
    area = 0.0
    for other in others:
        width = min(box[2], other[2]) - max(box[0], other[0])
        height = min(box[3], other[3]) - max(box[1], other[1])
        area += max(width, 0) * max(height, 0)
    return area


def _outside(box: Box, room: Box) -> float:
    """How far `box` reaches out of `room`."""
    return sum(max(d, 0) for d in (room[0] - box[0], room[1] - box[1], box[2] - room[2], box[3] - room[3]))
