"""GReg-1: filters that are chosen beforehand are pushed to zero by a growing penalty, then removed.

Wang et al. 2021, *Neural Pruning via Growing Regularization*, algorithm 1. What goes is chosen before training, by L1,
by optimal brain damage (table 7), at random, by the largest L1, or is what another checkpoint has lost. Afterwards the
network is fine-tuned.
"""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import Meta

from prunecli.allocate.counts import GUARD
from prunecli.methods.gradual.growing import Growing, Growth
from prunecli.methods.gradual.imported import imported, importing_parts
from prunecli.methods.gradual.parts import Part, Pick, pick
from prunecli.progress import Say
from prunecli.training import Run


class Settings(Growth, frozen=True, kw_only=True):
    """What is chosen."""

    pick: Annotated[Pick, Meta(description="choice of what goes: l1, obd, random or max (the largest)")] = "l1"
    samples: Annotated[int, Meta(ge=1, description="number of examples from which obd takes its gradients")] = 1000
    indices: Annotated[
        str | None, Meta(description="checkpoint, or JSON table by layer, that says what goes in place of a share")
    ] = None

    def __post_init__(self) -> None:
        if self.indices is None:
            super().__post_init__()
        elif self.sparsity is not None or self.ratios or self.pick != "l1":
            raise ValueError("indices say what goes: drop --sparsity, --ratios and pick")
        if self.pick == "obd" and self.ratios:
            raise ValueError("pick=obd ranks all layers together: give --sparsity in place of --ratios")


class Method(Growing):
    """The choice stands; of all layers together, growth ends early."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.settings = settings

    @property
    def increments(self) -> int:
        return math.ceil(self.settings.tau / self.settings.delta - GUARD)

    def factor(self, increments: int) -> float:
        return min(self.settings.tau, increments * self.settings.delta)

    def scope(self, run: Run, say: Say) -> list[Part]:
        return importing_parts(run, self.settings) if self.settings.indices else super().scope(run, say)

    def choose(self, run: Run, say: Say) -> None:
        if self.pruned:
            return
        if self.settings.indices:
            self.pruned.update(imported(run, self.parts, self.settings.indices))
        else:
            self.pruned.update(pick(run, self.parts, self.settings.pick, self.settings.samples, say))
