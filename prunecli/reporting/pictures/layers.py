"""Widths, original and kept, and the masked share of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunecli.measure import Layer
from prunecli.reporting.pictures.style import FAINT, Picture, color, drawing, figure, picture
from prunecli.reporting.row import Row

PANELS = 12
NAMED = 24  # more layers than this are numbered instead of named


def layers(rows: Sequence[Row]) -> Picture | None:
    """A line of panels for every shape among the checkpoints; those with equal layers share it."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, row in enumerate(rows):
        key = tuple((layer.name, layer.shape, layer.nonzero) for layer in _weighted(row))
        groups.setdefault(key, []).append(i)
    groups.pop((), None)
    if not groups:
        return None
    shown = list(groups.values())[:PANELS]
    masked = any(rows[i].masked for members in shown for i in members)
    longest = max(len(layer.name) for members in shown for layer in _weighted(rows[members[0]]))
    crowded = max(len(_weighted(rows[members[0]])) for members in shown)
    named = crowded <= NAMED
    with drawing():
        foot = min(0.075 * longest, 1.6) if named and crowded > 8 else 0.25
        drawn = figure((1.55 + foot) * len(shown) + 0.2)
        panels = drawn.subplots(len(shown), 2 if masked else 1, squeeze=False)
        for members, line in zip(shown, panels, strict=True):
            row, names = rows[members[0]], ", ".join(rows[i].name for i in members)
            _widths(line[0], row, color(members[0]), named)
            line[0].set_title(_fitted(names, 60 if masked else 110))
            if masked:
                _sparsity(line[1], row, color(members[0]), named)
        panels[0][0].set_ylabel("width")
        caption = (
            "Units (channels, neurons) of each layer in the order in which they act: kept in colour, removed in grey"
        )
        caption += "; and the share of its parameters that masks remove." if masked else "."
        if len(groups) > PANELS:
            caption += f" The first {PANELS} of {len(groups)} different shapes."
        return picture(drawn, "layers", "Widths and sparsity by layer" if masked else "Widths by layer", caption)


def _weighted(row: Row) -> list[Layer]:
    return [layer for layer in row.sums.layers if layer.kind != "other"]


def _widths(axes: Any, row: Row, shade: str, named: bool) -> None:
    shown = _weighted(row)
    places = range(len(shown))
    axes.bar(places, [layer.original_shape[0] for layer in shown], color="#d5dae0", width=0.8)
    bars = axes.bar(places, [layer.shape[0] for layer in shown], color=shade, width=0.8)
    if len(shown) <= 12:
        axes.bar_label(bars, [_width(layer) for layer in shown], fontsize=8, color=FAINT, padding=1)
        axes.margins(y=0.16)
    _name(axes, shown, named)


def _width(layer: Layer) -> str:
    before, now = layer.original_shape[0], layer.shape[0]
    return str(now) if now == before else f"{now} of {before}"


def _sparsity(axes: Any, row: Row, shade: str, named: bool) -> None:
    if not row.masked:
        axes.set_axis_off()
        axes.set_title("no masks", color=FAINT, fontsize=9)
        return
    shown = _weighted(row)
    axes.bar(range(len(shown)), [100 * layer.sparsity for layer in shown], color=shade, width=0.8)
    axes.set_ylim(0, 100)
    axes.set_title("masked, %", color=FAINT, fontsize=9)
    _name(axes, shown, named)


def _name(axes: Any, shown: Sequence[Layer], named: bool) -> None:
    axes.grid(visible=False, axis="x")
    axes.set_xlim(-0.6, len(shown) - 0.4)
    if named:
        axes.set_xticks(range(len(shown)), [layer.name for layer in shown], fontsize=8)
        axes.tick_params(axis="x", rotation=90 if len(shown) > 8 else 0, length=0)
    else:
        axes.set_xlabel("layer", fontsize=8)


def _fitted(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
