"""The columns of every table, and how their numbers are written for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prunecli.progress import short
from prunecli.reporting.row import Row

NONE = "–"


def count(value: float | None) -> str:
    """Three digits and k, M or G: 61.7k."""
    if value is None:
        return NONE
    return short(value) if value >= 999.5 else f"{value:.0f}"


def size(value: float | None) -> str:
    """Bytes with a decimal unit: 247 kB."""
    if value is None:
        return NONE
    text = count(value)
    return text[:-1] + f" {text[-1]}B" if text[-1] in "kMG" else text + " B"


def share(value: float | None) -> str:
    """A share as a percentage: 98.76 %, and 90 % where nothing is behind the point."""
    return NONE if value is None else f"{100 * value:.2f}".rstrip("0").rstrip(".") + " %"


def milliseconds(value: float | None) -> str:
    """Three digits."""
    return NONE if value is None else f"{value:.3g} ms"


def accuracy(value: float | None) -> str:
    """A percentage with two digits behind the point, always."""
    return NONE if value is None else f"{100 * value:.2f} %"


@dataclass(frozen=True)
class Column:
    """A column of the overview. In a narrow terminal, columns of high `rank` go first."""

    title: str
    cell: Callable[[Row], str]
    rank: int = 0


def overview(rows: Sequence[Row]) -> list[Column]:
    """The columns that say something about these checkpoints."""
    masked = any(row.masked for row in rows)
    cut = any(row.sums.original_params != row.sums.params for row in rows)
    scored = any(row.last for row in rows)
    packed = any(row.compressed is not None for row in rows)
    columns = [Column("checkpoint", lambda row: row.name), Column("parameters", lambda row: count(row.sums.params))]
    if masked:
        columns.append(Column("non-zero", lambda row: count(row.sums.nonzero_params), 1))
    columns.append(Column("MACs", lambda row: count(row.sums.macs)))
    if masked:
        columns.append(Column("effective", lambda row: count(row.sums.effective_macs), 2))
    if cut or masked:
        columns.append(Column("MACs left", _macs_left, 5))
    if masked:
        columns.append(Column("sparsity", lambda row: share(row.sums.sparsity) if row.masked else NONE, 3))
    columns.append(Column("bytes", lambda row: size(row.bytes), 4))
    if packed:
        columns.append(Column("zlib", lambda row: size(row.compressed), 6))
    if scored:
        columns.append(Column("top-1 last", lambda row: accuracy(row.metrics()["top1"])))
        columns.append(Column("best", lambda row: accuracy(row.metrics()["best_top1"]), 7))
    if any(row.sidecar.metrics.test for row in rows):
        columns.append(Column("on test", lambda row: accuracy(row.metrics()["test_top1"])))
    return columns


def _macs_left(row: Row) -> str:
    original = row.sums.original_macs
    return share(round(row.sums.effective_macs / original, 3)) if original else NONE
