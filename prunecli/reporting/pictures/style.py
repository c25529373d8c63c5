"""One look for all pictures, and figures as SVG text, the same every time, that refers to nothing outside itself."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

WIDTH = 10.4  # inches; 72 dots each
INK, FAINT, GRID = "#1f2933", "#52606d", "#e4e7eb"
# Okabe and Ito's colours, told apart by readers with any colour vision; yellow is too light on white.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b5ea7", "#6b7280")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")

STYLE = {
    "svg.hashsalt": "prunecli",
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": FAINT,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Picture:
    """An SVG with what it shows: `title` above it, `caption` below it, read out to those who cannot see it."""

    title: str
    caption: str
    svg: str


@contextmanager
def drawing() -> Iterator[None]:
    """The style, for the figures made inside."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def color(i: int) -> str:
    """The colour of the i-th checkpoint, the same in every picture."""
    return COLORS[i % len(COLORS)]


def marker(i: int) -> str:
    """The marker of the i-th checkpoint."""
    return MARKERS[(i + i // len(COLORS)) % len(MARKERS)]


def stroke(i: int, points: int) -> dict[str, Any]:
    """How the line of the i-th checkpoint is drawn, through so many points."""
    every = max(points // 8, 1)
    return {"color": color(i), "marker": marker(i), "markersize": 5, "markevery": every, "lw": 1.6}


def stretch(axes: Any) -> None:
    """A logarithmic y axis where values are far apart; zeros stay on it, at the bottom."""
    values = [float(y) for line in axes.lines for y in line.get_ydata()]
    positive = [y for y in values if y > 0]
    if not positive or min(values) < 0 or max(positive) <= 20 * min(positive):
        return
    if 0 in values:
        axes.set_yscale("symlog", linthresh=min(positive))
    else:
        axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()


def epochs(*panels: Any) -> None:
    """Epochs along the x axes."""
    for axes in panels:
        axes.set_xlabel("epoch of the checkpoint's own run")
        axes.xaxis.get_major_locator().set_params(integer=True)


def figure(height: float) -> Figure:
    """An empty figure as wide as the page."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def picture(drawn: Figure, key: str, title: str, caption: str) -> Picture:
    """`drawn` as a picture; `key` keeps its element ids apart from those of other pictures on the page."""
    stream = io.StringIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    drawn.savefig(stream, format="svg", metadata=metadata)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{key}-", svg)
    head = f'<svg role="img" aria-labelledby="{key}-title {key}-desc"'
    described = f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-desc">{escape(caption)}</desc>'
    svg = re.sub(r'^<svg ([^>]*?)width="[^"]*"([^>]*?)height="[^"]*"([^>]*)>', rf"{head} \1\2\3>", svg, count=1)
    return Picture(title, caption, svg.replace(">", ">" + described, 1).strip())
