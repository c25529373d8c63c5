"""The pruning methods: a file a paper, one table that lists them. Imports no torch, so that options can name them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunecli.allocate.counts import Rounding, keep_floor, prune_floor


@dataclass(frozen=True)
class Method:
    """A point in criterion x structure x allocation, with the rounding that its paper or code uses.

    `criterion` is a name in `prunecli.criteria.CRITERIA`; `scope` is where scores are ranked unless `--scope` says.
    """

    criterion: str
    structure: Literal["units", "weights"]
    scope: Literal["local", "global"]
    rounding: Rounding
    summary: str


METHODS = {
    "l1": Method("l1", "units", "local", keep_floor, "smallest sum of absolute weights (Li et al. 2017)"),
    "l2": Method("l2", "units", "local", keep_floor, "smallest Euclidean norm"),
    "fpgm": Method("fpgm", "units", "local", prune_floor, "nearest to the geometric median (He et al. 2019)"),
    "bn-scale": Method("bn-scale", "units", "global", prune_floor, "smallest batch-norm scale (Liu et al. 2017)"),
    "random": Method("random", "units", "local", keep_floor, "random units"),
    "magnitude": Method("magnitude", "weights", "global", prune_floor, "smallest weights (Han et al. 2015)"),
    "random-weights": Method("random-weights", "weights", "global", prune_floor, "random weights"),
}
