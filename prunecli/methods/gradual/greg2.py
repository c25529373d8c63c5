"""GReg-2: a penalty that grows on all filters tells which are weak; these are then pushed to zero and removed.

Wang et al. 2021, *Neural Pruning via Growing Regularization*, algorithm 2. All filters of the layers in scope share a
growing penalty until lambda has reached tau' (`tau_pick`); then those of least L1 norm in each layer are picked. Their
penalty grows on to tau; that of the others becomes -gamma, which cancels the run's weight decay (of AdamW, which
decays beside the gradient, it does not). As in the authors' code, lambda grows by 1e-5 while filters are picked and by
1e-4 when they are pushed; the paper's 1e-5 throughout is `delta=1e-5`. Each layer ends its growth early by itself.
"""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import Meta

from prunecli.allocate.counts import GUARD
from prunecli.methods.gradual.growing import Growing, Growth
from prunecli.methods.gradual.parts import pick
from prunecli.methods.gradual.settings import Positive
from prunecli.progress import Say
from prunecli.training import Run


class Settings(Growth, frozen=True, kw_only=True):
    """How filters are picked."""

    tau_pick: Annotated[Positive, Meta(description="penalty factor at which filters are picked (tau')")] = 0.01
    delta_pick: Annotated[Positive, Meta(description="growth of the penalty factor before filters are picked")] = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau_pick > self.tau:
            raise ValueError(f"tau_pick {self.tau_pick:g} is above tau {self.tau:g}")


class Method(Growing):
    """Filters of all layers are picked at one time."""

    together = False

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.settings = settings

    @property
    def picking(self) -> int:
        """Increments before filters are picked."""
        return math.ceil(self.settings.tau_pick / self.settings.delta_pick - GUARD)

    @property
    def increments(self) -> int:
        return self.picking + math.ceil((self.settings.tau - self.settings.tau_pick) / self.settings.delta - GUARD)

    def factor(self, increments: int) -> float:
        if increments <= self.picking:
            return min(self.settings.tau_pick, increments * self.settings.delta_pick)
        return min(self.settings.tau, self.settings.tau_pick + (increments - self.picking) * self.settings.delta)

    def choose(self, run: Run, say: Say) -> None:
        if self.made == self.picking and not self.pruned:
            self.pruned.update(pick(run, self.parts, "l1", 0, say))

    def stays(self, run: Run) -> float:
        return -float(run.optimizer.param_groups[0].get("weight_decay", 0.0))

    def status(self, run: Run) -> str:
        return super().status(run) if self.pruned else super().status(run).replace("growing", "picking")
