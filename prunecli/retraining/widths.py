"""Widths of the baselines that keep the size of a pruned network and not its widths (Liu et al. 2019, section 5).

A layer here is a group of units that are cut together, known by its key; sizes and widths are numbers of units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from prunecli.errors import TargetError

Widths = dict[str, int]
GUARD = 1e-9
LINEAR = -1  # the stage of all linear layers


def share_of(sizes: Mapping[str, int], share: float) -> Widths:
    """Every layer keeps floor(share * units), and at least one."""
    return {layer: max(1, math.floor(share * size + GUARD)) for layer, size in sizes.items()}


def thin(sizes: Mapping[str, int], ratio: float) -> Widths:
    """The equivalent thin dense network: every width floor(sqrt(ratio) * units), for a share `ratio` of the weights."""
    return share_of(sizes, math.sqrt(ratio))


def uniform(sizes: Mapping[str, int], measure: Callable[[Widths], float], target: float) -> Widths:
    """Uniform pruning: the largest share of units, the same in each layer, whose `measure` is at most `target`.

    Raises `TargetError` when one unit a layer is still more.
    """
    shares = sorted({kept / size for size in sizes.values() for kept in range(1, size + 1)})
    if measure(share_of(sizes, 0.0)) > target:
        raise TargetError(f"--shape uniform: no network is as small as {target:,.0f}", "use --shape same")
    low, high = 0, len(shares)
    while low < high:  # shares[:low] fit, shares[high:] do not
        middle = (low + high) // 2
        if measure(share_of(sizes, shares[middle])) <= target:
            low = middle + 1
        else:
            high = middle
    return share_of(sizes, shares[low - 1] if low else 0.0)


def stage_shares(sizes: Mapping[str, int], widths: Mapping[str, int], stages: Mapping[str, int]) -> dict[int, float]:
    """The mean kept share of each stage's layers: the mean of kept channels where a stage's layers are equally wide."""
    shares: dict[int, list[float]] = {}
    for layer, size in sizes.items():
        shares.setdefault(stages[layer], []).append(widths.get(layer, size) / size)
    return {stage: math.fsum(values) / len(values) for stage, values in shares.items()}


def guided(sizes: Mapping[str, int], stages: Mapping[str, int], shares: Mapping[int, float]) -> Widths:
    """Guided pruning: a layer keeps its stage's share (all where it has none), to the nearest unit; at least one."""
    return {layer: max(1, math.floor(shares.get(stages[layer], 1.0) * size + 0.5)) for layer, size in sizes.items()}


def number_stages(maps: Mapping[str, int | None]) -> dict[str, int]:
    """Number the layers' stages: equal sizes of map are one stage, in the layers' order; None, no map, is `LINEAR`."""
    order = {size: number for number, size in enumerate(dict.fromkeys(s for s in maps.values() if s is not None))}
    return {layer: LINEAR if size is None else order[size] for layer, size in maps.items()}
