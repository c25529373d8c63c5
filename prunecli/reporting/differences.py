"""What differs between two checkpoints: network, numbers, widths, masks, the way they were made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from prunecli.measure import Layer
from prunecli.reporting.row import Row


@dataclass(frozen=True)
class Change:
    """One thing that differs; `before` or `after` is None where one side has no such thing."""

    what: str
    before: Any
    after: Any

    @property
    def ratio(self) -> float | None:
        """`after` as a multiple of `before`, for numbers."""
        numbers = isinstance(self.before, (int, float)) and isinstance(self.after, (int, float))
        return self.after / self.before if numbers and self.before else None


@dataclass(frozen=True)
class Difference:
    """All changes from the checkpoint named `before` to the one named `after`."""

    before: str
    after: str
    changes: tuple[Change, ...]

    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        changes = [{**asdict(change), "ratio": change.ratio} for change in self.changes]
        return {"before": self.before, "after": self.after, "changes": changes}


def compare(before: Row, after: Row) -> Difference:
    """The differences between two checkpoints; an empty list of changes means that every number agrees."""
    changes = (*_facts(before, after), *_layers(before, after), *_steps(before, after))
    return Difference(before.name, after.name, tuple(change for change in changes if change.before != change.after))


def _facts(before: Row, after: Row) -> Iterator[Change]:
    one, other = before.sidecar, after.sidecar
    yield Change("arch", one.arch.name, other.arch.name)
    yield Change("arch arguments", one.arch.args, other.arch.args)
    yield Change("data", one.data.name if one.data else None, other.data.name if other.data else None)
    yield Change("input", one.cost.input, other.cost.input)
    yield Change("split", one.metrics.split, other.metrics.split)
    old, new = before.metrics(), after.metrics()
    for name, value in old.items():
        if name != "flops" and not name.startswith("latency"):
            yield Change(name, value, new[name])


def _layers(before: Row, after: Row) -> Iterator[Change]:
    old = {layer.name: layer for layer in before.sums.layers if layer.kind != "other"}
    new = {layer.name: layer for layer in after.sums.layers if layer.kind != "other"}
    for name in [*old, *(name for name in new if name not in old)]:
        one, other = old.get(name), new.get(name)
        yield Change(f"shape of {name}", _shape(one), _shape(other))
        if one and other:
            yield Change(f"sparsity of {name}", one.sparsity, other.sparsity)


def _shape(layer: Layer | None) -> list[int] | None:
    return list(layer.shape) if layer else None


def _steps(before: Row, after: Row) -> Iterator[Change]:
    """The steps after the last one in common."""
    old, new = before.lineage, after.lineage
    common = 0
    while common < min(len(old), len(new)) and _same(before, after, common):
        common += 1
    texts = ([link.text() for link in links[common:]] or None for links in (old, new))
    yield Change("steps", *texts)


def _same(before: Row, after: Row, i: int) -> bool:
    one, other = before.lineage[i], after.lineage[i]
    return (one.command, one.options, one.parent) == (other.command, other.options, other.parent)
