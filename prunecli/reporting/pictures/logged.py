"""The numbers that methods logged while they pruned: penalties, bounds, norms, of the network or of single layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

from prunecli.reporting.pictures.pruning import logged
from prunecli.reporting.pictures.style import Picture, drawing, epochs, figure, picture, stretch, stroke
from prunecli.reporting.row import Row

SUMS = ("sparsity", "macs", "params")  # another picture's
APART = {
    "kept_norm": ("norm of kept and pruned weights", "kept_norm", "pruned_norm"),
    "scale_staying": ("batch-norm scales that stay and go", "scale_staying", "scale_going"),
}
PANELS = 16
NAMED = 8  # of more layers, the legend names some


@dataclass(frozen=True)
class Line:
    """Values by epoch, and how matplotlib draws them."""

    values: dict[int, float]
    look: dict[str, Any]


def numbers(rows: Sequence[Row]) -> Picture | None:
    """A panel for each number, and for each that belongs to layers; None where nothing was logged."""
    shown = logged(rows)
    panels = [*_of_networks(shown), *(panel for i, row in shown for panel in _of_layers(row))]
    if not panels:
        return None
    with drawing():
        height = (min(len(panels), PANELS) + 1) // 2
        drawn = figure(2.2 * height + 0.3)
        for place, (title, lines) in enumerate(panels[:PANELS], 1):
            axes = drawn.add_subplot(height, 2, place)
            axes.set_title(title)
            for line in lines:
                axes.plot([*line.values], [*line.values.values()], **line.look)
            stretch(axes)
            epochs(axes)
            if any("label" in line.look for line in lines):
                axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, handlelength=1.4)
        caption = "What the methods logged after each epoch; axes are logarithmic where values are far apart."
        if len(panels) > PANELS:
            caption += f" The first {PANELS} of {len(panels)} panels."
        return picture(drawn, "numbers", "What the methods logged", caption)


def _of_networks(shown: Sequence[tuple[int, Row]]) -> Iterator[tuple[str, list[Line]]]:
    """Panels of a line a checkpoint; what the point is to tell apart is dashed in the panel of the other."""
    names = dict.fromkeys(name for _, row in shown for name in _names(row) if "/" not in name and name not in SUMS)
    for name in names:
        if any(name in keys[2:] for keys in APART.values()):
            continue
        title, *keys = APART.get(name, (name.replace("_", " "), name))
        lines = []
        for key, dashes in zip(keys, ("-", "--"), strict=False):
            for i, row in shown:
                if values := _values(row, key):
                    words = [row.name] * (len(shown) > 1) + [key.replace("_", " ")] * (len(keys) > 1)
                    label = {"label": ", ".join(words)} if words else {}
                    lines.append(Line(values, {**stroke(i, len(values)), "ls": dashes, **label}))
        yield title, lines


def _of_layers(row: Row) -> Iterator[tuple[str, list[Line]]]:
    """Panels of a line a layer, from dark at the first to light at the last."""
    families: dict[str, list[str]] = {}
    for name in _names(row):
        if "/" in name:
            families.setdefault(name.partition("/")[0], []).append(name)
    for family, names in families.items():
        last = max(len(names) - 1, 1)
        told = {round(last * k / (NAMED - 1)) for k in range(NAMED)} if len(names) > NAMED else set(range(len(names)))
        lines = []
        for k, name in enumerate(names):
            label = {"label": name.partition("/")[2]} if k in told else {}
            shade = matplotlib.colormaps["viridis"](0.9 * k / last)
            values = _values(row, name)
            lines.append(Line(values, {"color": shade, "lw": 1.4, "marker": "." if len(values) < 2 else "", **label}))
        yield f"{family.replace('_', ' ')} by layer, {row.name}", lines


def _names(row: Row) -> list[str]:
    return [*dict.fromkeys(name for log in row.sidecar.metrics.curve for name in log.method)]


def _values(row: Row, name: str) -> dict[int, float]:
    return {log.epoch: log.method[name] for log in row.sidecar.metrics.curve if name in log.method}
