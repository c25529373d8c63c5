"""The report as text for a terminal of any width."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from prunecli.methods.gradual import Setting
from prunecli.reporting import columns
from prunecli.reporting.columns import accuracy, count, milliseconds, overview, share
from prunecli.reporting.differences import Change, Difference
from prunecli.reporting.model import Report
from prunecli.reporting.row import Row
from prunecli.reporting.structure import Outline, Tied, brief

PIPED_WIDTH = 120


def render(report: Report, *, width: int | None = None, color: bool | None = None) -> str:
    """The report as text, by default as wide as the terminal (COLUMNS), in colour only there and without NO_COLOR."""
    console = _console(width, color)
    for table in _overview(report.rows, console):
        console.print(table)
    _lineage(report.rows, console)
    for row in report.rows:
        if row.structure:
            console.print(_structure(row.name, row.structure))
        elif len(report.rows) == 1:
            console.print(_layers(row))
    for difference in report.differences:
        console.print(_difference(difference))
    if any(row.timings for row in report.rows):
        console.print(_latency(report.rows))
    for note in report.notes:
        console.print(Text(note, style="dim"))
    if report.failure:
        console.print(Text(report.failure.message, style="bold red"))
    return _text(console)


def settings(title: str, rows: Sequence[Setting]) -> str:
    """What a method takes, as text: a row a setting."""
    cells = [[row.name, _default(row.default), row.values, row.meaning] for row in rows]
    table = _table(title, ["setting", "default", "values", "meaning"], cells)
    for column in table.columns[1:]:
        column.justify = "left"
    for column in table.columns[2:]:
        column.no_wrap = False
    console = _console()
    console.print(table)
    return _text(console)


def _default(value: Any) -> str:
    return columns.NONE if value in (None, "") else value if isinstance(value, str) else json.dumps(value)


def _console(width: int | None = None, color: bool | None = None) -> Console:
    if width is None:
        width = shutil.get_terminal_size((PIPED_WIDTH, 25)).columns
    if color is None:
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return Console(
        file=io.StringIO(), width=max(width, 40), force_terminal=color, color_system="standard" if color else None,
        no_color=not color, highlight=False, emoji=False, legacy_windows=False,
    )  # fmt: skip


def _text(console: Console) -> str:
    """What was printed, without blanks at the ends of lines."""
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), title=title or None, title_justify="left")
    table.title_style = "bold"
    for i, heading in enumerate(headings):
        # Names fold onto further lines where they must; numbers are never broken.
        table.add_column(heading, justify="left" if i == 0 else "right", overflow="fold", no_wrap=i > 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _overview(rows: Sequence[Row], console: Console) -> Iterator[Table]:
    """Columns that the terminal is too narrow for are in further tables below."""
    name, *left = overview(rows)
    unlimited = console.options.update(max_width=10**4)
    while left:
        shown = [name, *left]
        while True:
            table = _table("", [c.title for c in shown], [[c.cell(row) for c in shown] for row in rows])
            expendable = [c for c in shown[1:] if c.rank]
            fits = console.measure(table, options=unlimited).maximum <= console.width
            if fits or not expendable or len(shown) == 2:
                break
            shown.remove(max(expendable, key=lambda c: c.rank))
        yield table
        left = [c for c in left if c not in shown]


def _lineage(rows: Sequence[Row], console: Console) -> None:
    console.print(Text("lineage", style="bold"))
    for row in rows:
        console.print(Padding(Text(f"{row.name}: {row.story}", overflow="fold"), (0, 0, 0, 1)))
    console.print()


def _layers(row: Row) -> Table:
    cells = []
    others = [layer for layer in row.sums.layers if layer.kind == "other"]
    for layer in row.sums.layers:
        if layer.kind == "other":
            continue
        width, before = layer.shape[0], layer.original_shape[0]
        cells.append([
            layer.name, layer.kind, str(width) if width == before else f"{width} of {before}", count(layer.params),
            share(layer.sparsity) if layer.masked else columns.NONE, count(layer.macs), count(layer.effective_macs),
        ])  # fmt: skip
    if others:
        cells.append(["other parameters", "", "", count(sum(layer.params for layer in others)), "", "", ""])
    if row.sums.other_macs:
        cells.append(["activation products", "", "", "", "", count(row.sums.other_macs), count(row.sums.other_macs)])
    return _table("layers", ["layer", "kind", "width", "parameters", "sparsity", "MACs", "effective"], cells)


def _structure(name: str, outline: Outline) -> Table:
    """A row a group, but one for all layers that are cut alone and alike; texts fold onto further lines."""
    alike: dict[tuple[object, ...], list[Tied]] = {}
    for group in outline.groups:
        alone = [re.sub(r"\d+", "#", text) for text in (*group.layers, group.verdict)]
        alike.setdefault(group.layers if len(group.layers) > 1 else (group.units, *alone), []).append(group)
    cells = []
    for first, *others in alike.values():
        layers = brief([*first.layers, *(group.layers[0] for group in others)])
        units = columns.NONE if first.reason else str(first.units)
        verdicts = dict.fromkeys(group.verdict for group in (first, *others))
        cells.append([layers + (", each alone" if others and not first.reason else ""), units, brief([*verdicts])])
    cells += [[layer, columns.NONE, "never called on these inputs"] for layer in outline.never_called]
    if outline.absent:
        cells.append([brief(outline.absent), columns.NONE, "taken away as a whole"])
    table = _table(f"structure of {name}", ["cut together", "units", "why"], cells)
    table.columns[2].justify, table.columns[2].no_wrap = "left", False
    return table


def _difference(difference: Difference) -> Table:
    cells = [[change.what, *_values(change)] for change in difference.changes if change.what != "steps"]
    title = f"from {difference.before} to {difference.after}"
    return _table(title if cells else title + ": the same", ["", difference.before, difference.after, "ratio"], cells)


def _values(change: Change) -> tuple[str, str, str]:
    ratio = columns.NONE if change.ratio is None else f"{change.ratio:.3g}"
    return value(change.what, change.before), value(change.what, change.after), ratio


def value(what: str, content: Any) -> str:
    """A number of a difference, written as in the overview."""
    if content is None:
        return columns.NONE
    if what in ("bytes", "compressed"):
        return columns.size(content)
    if what.endswith("top1"):
        return accuracy(content)
    if what.startswith("sparsity"):
        return share(content)
    if isinstance(content, float):
        return f"{content:.4g}"
    if isinstance(content, int):
        return count(content)
    if isinstance(content, list) and what != "steps":
        return "×".join(map(str, content))
    return " → ".join(content) if isinstance(content, list) else str(content)


def _latency(rows: Sequence[Row]) -> Table:
    """Checkpoints next to each other under each backend and batch size, where they can be compared."""
    cells = []
    for timings in zip(*(row.timings for row in rows), strict=True):
        for row, timing in zip(rows, timings, strict=True):
            quartiles = f"{milliseconds(timing.q1_ms)} to {milliseconds(timing.q3_ms)}"
            where = f"{timing.backend} ({timing.device})"
            cells.append([row.name, where, str(timing.batch), milliseconds(timing.median_ms), quartiles])
    return _table("latency", ["checkpoint", "backend", "batch", "median", "quartiles"], cells)
