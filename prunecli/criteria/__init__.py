"""Criteria: pure functions from aligned slices to one score a unit. The lowest scores are pruned first."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Generator, Tensor

from prunecli.criteria.chance import random_units, random_weights
from prunecli.criteria.fpgm import fpgm
from prunecli.criteria.magnitude import magnitude
from prunecli.criteria.norms import l1, l2
from prunecli.criteria.scale import bn_scale
from prunecli.criteria.slices import aligned

__all__ = [
    "CRITERIA", "Criterion", "Scorer", "aligned", "bn_scale", "bound", "fpgm", "l1", "l2", "magnitude", "random_units",
    "random_weights",
]  # fmt: skip

Scorer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Criterion:
    """What is unimportant: a function of the slices that `reads` names.

    `reads`: "out" = the weights that make the units, "norm" = the scale of the batch norm behind them, "weight" =
    single weights, "unit" = nothing but their number. `comparable`: scores of different layers mean the same and are
    ranked together as they are; otherwise a global ranking divides them by their layer's mean first. `seeded`: the
    function takes a random generator.
    """

    score: Callable[..., Tensor]
    reads: Literal["out", "norm", "weight", "unit"] = "out"
    comparable: bool = False
    seeded: bool = False


CRITERIA = {
    "l1": Criterion(l1),
    "l2": Criterion(l2),
    "fpgm": Criterion(fpgm),
    "bn-scale": Criterion(bn_scale, reads="norm", comparable=True),
    "random": Criterion(random_units, reads="unit", comparable=True, seeded=True),
    "magnitude": Criterion(magnitude, reads="weight", comparable=True),
    "random-weights": Criterion(random_weights, reads="weight", comparable=True, seeded=True),
}


def bound(criterion: Criterion, seed: int) -> Scorer:
    """The criterion as a function of slices alone, its random numbers (if any) drawn from `seed`."""
    if not criterion.seeded:
        return criterion.score
    return functools.partial(criterion.score, generator=Generator().manual_seed(seed))
