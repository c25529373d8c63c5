"""`report`: what checkpoints cost and achieve, from their files; torch is imported for latency and pictures only."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from prunecli.options.report import ReportOptions
from prunecli.progress import Say, silent
from prunecli.reporting.differences import compare
from prunecli.reporting.gates import failure, parse_gates
from prunecli.reporting.model import Report, Schema
from prunecli.reporting.row import Row, read_rows
from prunecli.sidecar import json_schema

if TYPE_CHECKING:
    from prunecli.measure.timing import Timing
    from prunecli.reporting.structure import Outline


def run(options: ReportOptions, say: Say = silent) -> Report | Schema:
    """Report on `options.checkpoints`, and write `options.html` where it is given.

    A gate that is not met is the report's `failure`, so that the numbers are there to be shown; the caller raises it.
    Raises `DamagedError` for a damaged checkpoint, `UsageError` for a gate on a metric that does not exist.
    """
    if options.schema:
        return Schema(json_schema())
    gates = parse_gates(options.fail_under, options.fail_over, latency=options.latency, compressed=options.compressed)
    rows = read_rows(options.checkpoints, compressed=options.compressed)
    if options.latency:
        say.status("measuring latency")
        timed = zip(rows, _timings(rows, options), strict=True)
        rows = [replace(row, timings=tuple(timings)) for row, timings in timed]
    if options.structure:
        say.status("tracing")
        rows = [replace(row, structure=_outline(row, options)) for row in rows]
    compared = rows[1:] if options.diff or len(rows) == 2 else []
    report = Report(
        rows=tuple(rows),
        differences=tuple(compare(rows[0], row) for row in compared),
        gates=tuple(gates),
        failure=failure(gates, rows),
        form=options.form,
    )
    if options.html is not None:
        from prunecli.reporting.html import write_page

        say.status("drawing pictures")
        write_page(report, options.html)
    return report


def _outline(row: Row, options: ReportOptions) -> Outline:
    from prunecli.loading import load
    from prunecli.reporting.tracing import outline

    network, _ = load(row.path, trust=options.trust)
    return outline(network, row.sidecar.cost.input, row.sums, heads=options.heads, record=row.sidecar.surgery)


def _timings(rows: list[Row], options: ReportOptions) -> list[list[Timing]]:
    import torch

    from prunecli.loading import load
    from prunecli.measure import latency
    from prunecli.training.run import prepare

    device = prepare(options)
    generator = torch.Generator().manual_seed(0)
    candidates = []
    for row in rows:
        network, _ = load(row.path, device=options.device, trust=options.trust)
        example = torch.randn(1, *row.sidecar.cost.input, generator=generator)
        candidates.append((network.float(), example.to(device)))
    return latency(candidates, options.batches, threads=torch.get_num_threads(), repeats=options.repeats)
