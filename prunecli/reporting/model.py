"""A report: what is known of each checkpoint, the differences, the gates, and the forms it can be shown in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from prunecli.errors import GateError
from prunecli.reporting.differences import Difference
from prunecli.reporting.gates import Gate
from prunecli.reporting.row import Row

UNITS = "1 MAC = one multiply-add of one example; FLOPs = 2 x MACs. Parameters include normalisations, not buffers."
MASKS = (
    "Masks alone make nothing faster: dense kernels multiply their zeros too. Effective MACs are what only a sparse "
    "kernel would save; cut the network, or compress the file, for a gain everywhere."
)


@dataclass(frozen=True)
class Report:
    """The result of `report`. `failure` is the error to raise after printing, where a gate is not met."""

    rows: tuple[Row, ...]
    differences: tuple[Difference, ...] = ()
    gates: tuple[Gate, ...] = ()
    failure: GateError | None = None
    form: Literal["table", "csv", "md"] = "table"

    @property
    def notes(self) -> list[str]:
        """What a reader must know to take the numbers for what they are."""
        notes = [UNITS]
        if any(row.masked for row in self.rows):
            notes.append(MASKS)
        splits = sorted({row.sidecar.metrics.split for row in self.rows if row.last})
        if splits:
            chosen = (
                "; the best epoch was chosen on that same split"
                if any(r.sidecar.metrics.best not in (None, r.last) for r in self.rows)  # where they are one, none was
                else ""
            )
            test = (
                " (“on test”: the last weights on the test split)"
                if any(r.sidecar.metrics.test for r in self.rows)
                else ""
            )
            notes.append(f"Accuracy is on the {' and '.join(splits)} split{chosen}{test}.")
        if timing := next((t for row in self.rows for t in row.timings), None):
            threads = "1 thread" if timing.threads == 1 else f"{timing.threads} threads"
            notes.append(
                f"Latency: median and quartiles of {timing.repeats} runs on this machine, {threads}, "
                "one run of each candidate after another."
            )
        return notes

    def data(self) -> dict[str, Any]:
        """The report for programs."""
        return {
            "notes": self.notes,
            "checkpoints": [row.data() for row in self.rows],
            "differences": [difference.data() for difference in self.differences],
            "gates": [
                {
                    "checkpoint": row.name,
                    "flag": gate.flag,
                    "metric": gate.metric,
                    "value": gate.value_of(row),
                    "limit": gate.limit_for(row),
                    "met": gate.met(row),
                }
                for row in self.rows
                for gate in self.gates
            ],
        }

    def text(self) -> str:
        """The report for people, or the CSV or Markdown table that was asked for."""
        if self.form == "table":
            from prunecli.reporting.terminal import render

            return render(self)
        from prunecli.reporting.tables import to_csv, to_markdown

        return (to_csv if self.form == "csv" else to_markdown)(self.rows)


@dataclass(frozen=True)
class Schema:
    """The result of `report --schema`: the JSON Schema of a sidecar."""

    schema: dict[str, Any]

    def data(self) -> dict[str, Any]:
        """The schema."""
        return self.schema

    def text(self) -> str:
        """The schema as indented JSON."""
        import json

        return json.dumps(self.schema, indent=1)
