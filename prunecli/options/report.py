"""Options of `report`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunecli.errors import UsageError
from prunecli.options.fields import argument, check, option
from prunecli.options.shared import Execution
from prunecli.options.values import parse_numbers


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Execution):
    """Show what checkpoints cost and achieve: MACs, parameters, sparsity, bytes, accuracy, latency, lineage.

    1 MAC = one multiply-add; FLOPs = 2 x MACs. --fail-under and --fail-over make it a gate for Makefiles: exit code 6
    where a checkpoint misses one.
    """

    checkpoints: tuple[str, ...] = argument("Checkpoints to show.", metavar="CHECKPOINT", many=True)
    csv: bool = option(False, "Print a table of comma-separated values, a row a checkpoint.")
    md: bool = option(False, "Print a Markdown table.")
    html: str | None = option(None, "Also write a self-contained HTML page with pictures.", metavar="FILE")
    structure: bool = option(
        False, "Trace the network: which layers are tied to which, and why; with --html a picture of it."
    )
    heads: bool = option(False, "With --structure: units of attention are whole heads, as prune --heads cuts them.")
    diff: bool = option(False, "Compare every checkpoint with the first (two are always compared).")
    latency: bool = option(False, "Measure the time of a forward pass in PyTorch and onnxruntime.")
    batch: str = option("1,64", "Batch sizes to measure latency with.", metavar="N,N")
    repeats: int = option(50, "Runs of each latency measurement.", metavar="N")
    fail_under: tuple[str, ...] = option(
        (), "Fail where a metric is lower: top1=0.97, top1=97%. Repeatable.", metavar="METRIC=VALUE"
    )
    fail_over: tuple[str, ...] = option(
        (),
        "Fail where a metric is higher: macs=20M, macs=50% (of the uncut network). Repeatable.",
        metavar="METRIC=VALUE",
    )
    compressed: bool = option(True, "Measure the size after compression, which takes seconds for large files.")
    schema: bool = option(False, "Print the JSON Schema of sidecar files and exit.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.checkpoints and not self.schema:
            raise UsageError("no checkpoint to report on", "name one or more: prunecli report base.safetensors")
        if self.csv and self.md:
            raise UsageError("--csv and --md are different forms of one table", "choose one")
        if self.structure and (self.csv or self.md) and self.html is None:
            raise UsageError("--structure: a table of numbers cannot show it", "drop --csv and --md, or add --html")
        if self.heads and not self.structure:
            raise UsageError("--heads means nothing without --structure", "add --structure, or drop --heads")
        if self.html is not None and not self.html.endswith((".html", ".htm")):
            raise UsageError(f"--html {self.html!r}: not the name of a page", "give a name such as report.html")
        check(self.repeats >= 2, "--repeats", self.repeats, "2 or more")
        sizes = parse_numbers(self.batch, "--batch")
        valid = bool(sizes) and all(n == int(n) and 1 <= n <= 65536 for n in sizes)
        check(valid, "--batch", self.batch, "whole numbers from 1 to 65536: 1,64")

    @property
    def form(self) -> Literal["table", "csv", "md"]:
        """The form of the table that is printed: "table" for people, "csv" or "md"."""
        return "csv" if self.csv else "md" if self.md else "table"

    @property
    def batches(self) -> list[int]:
        """The batch sizes of `--batch`."""
        return [int(n) for n in parse_numbers(self.batch, "--batch")]
