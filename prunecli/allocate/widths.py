"""Structured allocation: how many units each layer keeps, and which.

Scores are one list of numbers a layer, higher = more important. A layer's units are always removed in one order, lowest
score first, ties by index; so widths alone say what is kept, and every budget is a prefix of one path of removals.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from prunecli.allocate.counts import Rounding, round_up
from prunecli.errors import TargetError

Scores = Mapping[str, Sequence[float]]
Scope = Literal["local", "global"]


@dataclass
class Allocation:
    """Kept units by layer, and the layers that keep one only because a layer never loses all."""

    widths: dict[str, int]
    guarded: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Removal:
    """One step of a path: `layer` goes from `before` to `after` units."""

    layer: str
    before: int
    after: int


def removal_order(scores: Sequence[float]) -> list[int]:
    """Indices from the first to go to the last: a stable sort, so that ties go by index."""
    return sorted(range(len(scores)), key=scores.__getitem__)


def select(scores: Sequence[float], width: int) -> list[int]:
    """The `width` units to keep, ascending."""
    return sorted(removal_order(scores)[len(scores) - width :])


def normalised(scores: Sequence[float]) -> list[float]:
    """Scores over their mean, which makes layers comparable; all-zero scores stay zero."""
    mean = math.fsum(scores) / len(scores)
    return [s / mean for s in scores] if mean > 0 else list(scores)


def by_share(scores: Scores, shares: Mapping[str, float], whole: Mapping[str, int], rounding: Rounding) -> Allocation:
    """Remove a share of each layer. `whole`: what the shares are of, the layers' sizes before the first round."""
    result = Allocation({})
    for layer, values in scores.items():
        kept = rounding(whole[layer], shares.get(layer, 0.0))
        if kept < 1:
            result.guarded.append(layer)
        result.widths[layer] = min(len(values), max(1, kept))
    return result


def by_rank(scores: Scores, share: float, whole: Mapping[str, int], rounding: Rounding) -> Allocation:
    """Remove a share of all units, lowest scores first wherever they are.

    Raises `TargetError` when that would leave a layer without units.
    """
    units = sum(whole.values())
    gone = units - sum(len(s) for s in scores.values())
    count = max(0, units - rounding(units, share) - gone)
    steps = path(scores, "global")
    if count > len(steps):
        raise TargetError(
            f"--sparsity {share:g}: only {gone + len(steps)} of {units} units can go, one stays in each layer",
            f"ask for at most --sparsity {math.floor((gone + len(steps)) / units * 1e4) / 1e4:g}",
        )
    widths = after(steps[:count], scores)
    ranked = sorted((s, number, layer) for number, layer in enumerate(scores) for s in scores[layer])
    lowest = Counter(layer for _, _, layer in ranked[:count])
    return Allocation(widths, [layer for layer in scores if lowest[layer] == len(scores[layer])])


def path(scores: Scores, scope: Scope, multiple: int = 1) -> list[Removal]:
    """All removals down to the smallest network, in order.

    "local": layers shrink together, in equal shares; "global": the lowest score goes next. With `multiple`, widths go
    through its multiples only (see `round_up`). The best unit of a layer is never removed.
    """
    steps: list[tuple[float, int, Removal]] = []
    for number, (layer, values) in enumerate(scores.items()):
        n = len(values)
        ranked = sorted(values)
        widths = sorted({round_up(w, n, multiple) for w in range(1, n + 1)}, reverse=True)
        for before, width in pairwise(widths):
            key = (n - width) / n if scope == "local" else ranked[n - width - 1]
            steps.append((key, number, Removal(layer, before, width)))
    return [step for _, _, step in sorted(steps, key=lambda s: s[:2])]


def after(steps: Sequence[Removal], scores: Scores) -> dict[str, int]:
    """The widths when `steps` are done."""
    return {layer: len(values) for layer, values in scores.items()} | {step.layer: step.after for step in steps}


def largest(steps: Sequence[Removal], scores: Scores, fits: Callable[[dict[str, int]], bool]) -> dict[str, int] | None:
    """The largest network on the path that fits, by bisection; then units are given back, best first, while it fits.

    In the end no step of any layer can be taken back: widening a layer costs no less once others are wider, so that one
    which did not fit never will. None when even the end of the path does not fit.
    """
    if not fits(after(steps, scores)):
        return None
    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        if fits(after(steps[:middle], scores)):
            high = middle
        else:
            low = middle + 1
    widths, closed = after(steps[:low], scores), set[str]()
    for step in reversed(steps[:low]):
        if step.layer not in closed:
            wider = widths | {step.layer: step.before}
            if fits(wider):
                widths = wider
            else:
                closed.add(step.layer)
    return widths


def rounded(widths: Mapping[str, int], scores: Scores, multiple: int) -> dict[str, int]:
    """Every width that shrinks, rounded up to a multiple (see `round_up`)."""
    return {layer: round_up(width, len(scores[layer]), multiple) for layer, width in widths.items()}
