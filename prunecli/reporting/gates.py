"""Gates for Makefiles: `--fail-under top1=0.97 --fail-over macs=20M`, held against every reported checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunecli.errors import GateError, UsageError, nearest
from prunecli.options.values import Amount, parse_amount
from prunecli.reporting.row import Row

METRICS = (
    "params", "nonzero", "macs", "effective_macs", "flops", "sparsity", "sparsity_all", "bytes", "compressed",
    "top1", "loss", "best_top1", "test_top1", "latency", "latency_pytorch",
)  # fmt: skip
SHARES = ("sparsity", "sparsity_all", "top1", "best_top1", "test_top1")  # 97% is 0.97
OF_ORIGINAL = ("params", "nonzero", "macs", "effective_macs", "flops")  # 50% is half of the network before any cut


@dataclass(frozen=True)
class Gate:
    """A limit on a metric: its value must not be below it (`--fail-under`) or not above it (`--fail-over`)."""

    flag: str
    metric: str
    limit: Amount

    def value_of(self, row: Row) -> float | None:
        """The metric; None where the checkpoint has no such number."""
        return row.metrics()[self.metric]

    def limit_for(self, row: Row) -> float | None:
        """The limit in the metric's own unit; None where the size of the original network is not known."""
        if not self.limit.relative or self.metric in SHARES:
            return self.limit.value
        if self.metric in ("params", "nonzero"):
            return self.limit.of(row.sums.original_params)
        original = row.sums.original_macs
        return None if original is None else self.limit.of(original * (2 if self.metric == "flops" else 1))

    def met(self, row: Row) -> bool:
        """Whether `row` passes. A number that is not known does not."""
        value, limit = self.value_of(row), self.limit_for(row)
        if value is None or limit is None:
            return False
        return value >= limit if self.flag == "--fail-under" else value <= limit


def parse_gates(under: Sequence[str], over: Sequence[str], *, latency: bool, compressed: bool) -> list[Gate]:
    """Read `METRIC=VALUE` texts. Raises `UsageError` for a metric that is unknown or is not being measured."""
    gates = []
    for flag, text in [*(("--fail-under", t) for t in under), *(("--fail-over", t) for t in over)]:
        metric, equals, amount = text.partition("=")
        if not equals:
            raise UsageError(f"{flag} {text!r}: not METRIC=VALUE", f"write {flag} top1=0.97")
        if metric not in METRICS:
            raise UsageError(f"{flag} {text!r}: unknown metric {metric!r}", nearest(metric, METRICS))
        if metric.startswith("latency") and not latency:
            raise UsageError(f"{flag} {text!r}: latency is not measured", "add --latency")
        if metric == "compressed" and not compressed:
            raise UsageError(f"{flag} {text!r}: the compressed size is not measured", "drop --no-compressed")
        limit = parse_amount(amount, f"{flag} {metric}")
        if limit.relative and metric not in (*SHARES, *OF_ORIGINAL):
            raise UsageError(f"{flag} {text!r}: {metric} has no whole to be a share of", "give an absolute value")
        gates.append(Gate(flag, metric, limit))
    return gates


def failure(gates: Sequence[Gate], rows: Sequence[Row]) -> GateError | None:
    """The error that lists every gate that a checkpoint misses; None when all are met."""
    missed = [_miss(gate, row) for row in rows for gate in gates if not gate.met(row)]
    if not missed:
        return None
    count = "1 gate is" if len(missed) == 1 else f"{len(missed)} gates are"
    return GateError(f"{count} not met: {'; '.join(missed)}", "improve the checkpoint, or move the gate on purpose")


def _miss(gate: Gate, row: Row) -> str:
    value, limit = gate.value_of(row), gate.limit_for(row)
    if value is None or limit is None:
        return f"{row.path}: {gate.metric} is not known"
    side = "below" if gate.flag == "--fail-under" else "above"
    return f"{row.path}: {gate.metric} {value:.10g} is {side} {limit:.10g}"
