"""The overview as CSV, for programs, and as a Markdown table, for documents."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from prunecli.reporting.columns import milliseconds, overview
from prunecli.reporting.row import Row


def to_csv(rows: Sequence[Row]) -> str:
    """One line a checkpoint, exact numbers, empty where there is none; shares from 0 to 1, latencies in ms."""
    timings = [(t.backend, t.batch) for t in rows[0].timings] if rows else []
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    metrics = [name for name in rows[0].metrics() if not name.startswith("latency")] if rows else []
    latencies = [f"latency_{backend}_batch{batch}_ms" for backend, batch in timings]
    writer.writerow(["checkpoint", "arch", "data", "split", *metrics, *latencies])
    for row in rows:
        numbers = row.metrics()
        data = row.sidecar.data.name if row.sidecar.data else ""
        writer.writerow([
            str(row.path), row.sidecar.arch.name, data, row.sidecar.metrics.split,
            *(numbers[name] for name in metrics), *(t.median_ms for t in row.timings),
        ])  # fmt: skip
    return stream.getvalue()


def to_markdown(rows: Sequence[Row]) -> str:
    """A Markdown table with the columns of the terminal's overview, and the latencies where they were measured."""
    columns = overview(rows)
    timings = [(t.backend, t.batch) for t in rows[0].timings] if rows else []
    headings = [column.title for column in columns] + [f"{backend}, batch {batch}" for backend, batch in timings]
    lines = [headings, [":--", *["--:"] * (len(headings) - 1)]]
    lines += [[c.cell(row) for c in columns] + [milliseconds(t.median_ms) for t in row.timings] for row in rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
