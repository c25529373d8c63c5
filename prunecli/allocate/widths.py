"""Structured allocation: how many units each layer keeps, and which.

Scores are one list of numbers a layer, higher = more important. A layer's units are always removed in one order, lowest
score first, ties by index; so widths alone say what is kept, and every budget is a prefix of one path of removals.

Which widths a layer may have is a list, ascending, the last one what it has now (see `allowed`): rounding to multiples
and the most that a layer may lose are nothing more than shorter lists.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Literal

from prunecli.allocate.counts import Rounding
from prunecli.errors import TargetError

Scores = Mapping[str, Sequence[float]]
Choices = Mapping[str, Sequence[int]]
Scope = Literal["local", "global"]


@dataclass
class Allocation:
    """Kept units by layer; `held` are the layers that the ranking alone would have cut below their smallest width.

    `asked` is how many units were to go in all: fewer do where the widths between are not allowed.
    """

    widths: dict[str, int]
    held: list[str] = field(default_factory=list)
    asked: int = 0


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


def allowed(
    scores: Sequence[float], least: int = 1, multiple: int = 1, channels: Sequence[Sequence[int]] = ()
) -> list[int]:
    """The widths that a layer may have: `least` and more, those that leave each tensor a multiple of channels.

    `channels` says for each tensor how many channels a unit is there, by unit; in a grouped convolution that loses the
    same positions of every group a unit is one channel of each group. What the layer has now is always allowed.
    """
    n = len(scores)
    widths = range(max(1, min(least, n)), n)
    if multiple > 1:
        kept = list(reversed(removal_order(scores)))
        lengths = [list(accumulate(sizes[unit] for unit in kept)) for sizes in channels or [[1] * n]]
        return [w for w in widths if all(length[w - 1] % multiple == 0 for length in lengths)] + [n]
    return [*widths, n]


def by_share(
    scores: Scores, shares: Mapping[str, float], whole: Mapping[str, int], rounding: Rounding, choices: Choices
) -> Allocation:
    """Remove a share of each layer, or what its next allowed width above leaves of that.

    `whole`: what the shares are of, the layers' sizes before the first round.
    """
    result = Allocation({})
    for layer, values in scores.items():
        kept = min(len(values), rounding(whole[layer], shares.get(layer, 0.0)))
        smallest = choices[layer][0]
        if kept < 1 and smallest == 1:
            result.held.append(layer)
        result.asked += whole[layer] - max(1, kept)
        result.widths[layer] = choices[layer][bisect_left(choices[layer], kept)]
    return result


def by_rank(scores: Scores, share: float, whole: Mapping[str, int], rounding: Rounding, choices: Choices) -> Allocation:
    """Remove a share of all units, lowest scores first wherever they are, or as many as allowed widths come to.

    Raises `TargetError` when so many cannot go.
    """
    units = sum(whole.values())
    gone = units - sum(len(s) for s in scores.values())
    asked = units - rounding(units, share)
    steps = path(scores, "global", choices)
    most = gone + sum(step.before - step.after for step in steps)
    if asked > most:
        raise TargetError(
            f"--sparsity {share:g}: only {most:,} of {units:,} units can go",
            f"ask for at most --sparsity {math.floor(most / units * 1e4) / 1e4:g}"
            + (", or let layers be narrower" if any(widths[0] > 1 for widths in choices.values()) else ""),
        )
    left, taken, closed = max(0, asked - gone), list[Removal](), set[str]()
    for step in steps:
        if step.layer in closed or step.before - step.after > left:
            closed.add(step.layer)  # its next width is further still
        else:
            left -= step.before - step.after
            taken.append(step)
    ranked = sorted((s, number, layer) for number, layer in enumerate(scores) for s in scores[layer])
    lowest = Counter(layer for _, _, layer in ranked[: max(0, asked - gone)])
    held = [layer for layer, values in scores.items() if len(values) - lowest[layer] < choices[layer][0]]
    return Allocation(after(taken, scores), held, asked)


def path(scores: Scores, scope: Scope, choices: Choices) -> list[Removal]:
    """All removals down to the smallest network, in order, through allowed widths only.

    "local": layers shrink together, in equal shares; "global": the lowest score goes next.
    """
    steps: list[tuple[float, int, Removal]] = []
    for number, (layer, values) in enumerate(scores.items()):
        n = len(values)
        ranked = sorted(values)
        for before, width in pairwise(reversed(choices[layer])):
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
