"""Distributions of the weights of convolutions and linear layers, masked ones left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunecli import checkpoint as checkpoints
from prunecli.reporting.columns import count, share
from prunecli.reporting.pictures.style import FAINT, Picture, color, drawing, figure, picture
from prunecli.reporting.row import Row

ROWS = 12
BINS = 81
NAMED = 24


def weights(rows: Sequence[Row]) -> Picture | None:
    """For each checkpoint a histogram of all weights and, layer by layer, their median and quantiles."""
    shown = list(enumerate(rows))[:ROWS]
    with drawing():
        drawn = figure(2.0 * len(shown) + 0.3)
        for i, row in shown:
            tensors = kept_weights(row)
            everything = np.concatenate([*tensors.values(), np.zeros(0, np.float32)])
            histogram, quantiles = (drawn.add_subplot(len(shown), 2, 2 * i + j) for j in (1, 2))
            _histogram(histogram, row, everything, color(i))
            _quantiles(quantiles, tensors, color(i))
            if i == len(shown) - 1:
                histogram.set_xlabel("weight")
                quantiles.set_xlabel("layer, in the order of use" if len(tensors) > NAMED else "")
        caption = (
            "Left: how many weights have which value (logarithmic); masked ones are counted in the title, not drawn. "
            "Right: each layer's median (mark), middle half (thick) and middle 90 % (thin)."
        )
        if len(rows) > ROWS:
            caption += f" The first {ROWS} of {len(rows)} checkpoints."
        return picture(drawn, "weights", "Weight distributions", caption)


def kept_weights(row: Row) -> dict[str, NDArray[np.float32]]:
    """The weights that multiply activations, by layer, flat, without masked ones."""
    loaded = checkpoints.load(row.path)
    result = {}
    for name in row.sidecar.cost.positions:
        values = loaded.weights[name].detach().float().flatten()
        mask = row.sidecar.masks.get(name)
        if mask is not None:
            values = values[checkpoints.unpack_mask(mask).flatten()]
        result[name.removesuffix(".weight")] = values.numpy()
    return result


def _histogram(axes: Any, row: Row, values: NDArray[np.float32], shade: str) -> None:
    removed = row.sums.params - row.sums.nonzero_params
    title = f"{row.name}: {count(values.size)} weights"
    axes.set_title(title + (f", {share(round(row.sums.sparsity, 4))} masked" if removed else ""))
    if values.size:
        reach = float(np.abs(values).max()) or 1.0
        heights, edges = np.histogram(values, bins=BINS, range=(-reach, reach))
        axes.stairs(heights, edges, fill=True, color=shade, baseline=0.5)
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.5)
        axes.minorticks_off()
    axes.grid(visible=False, axis="x")


def _quantiles(axes: Any, tensors: dict[str, NDArray[np.float32]], shade: str) -> None:
    for place, values in enumerate(tensors.values()):
        if values.size:
            low, q1, median, q3, high = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
            axes.plot([place, place], [low, high], color=shade, lw=1.2, solid_capstyle="butt")
            axes.plot([place, place], [q1, q3], color=shade, lw=5, solid_capstyle="butt")
            axes.plot([place], [median], "_", color="white", markersize=5, markeredgewidth=1.4)
    axes.axhline(0, color=FAINT, lw=0.6)
    axes.grid(visible=False, axis="x")
    if len(tensors) <= NAMED:
        rotation = 90 if len(tensors) > 8 else 0
        axes.set_xticks(range(len(tensors)), list(tensors), fontsize=8, rotation=rotation)
        axes.tick_params(axis="x", length=0)
