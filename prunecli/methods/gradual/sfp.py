"""Soft filter pruning: after every epoch the weakest filters are set to zero, and go on training.

He et al. 2018, *Soft Filter Pruning for Accelerating Deep CNNs*, algorithm 1. In each convolution by itself floor(n P)
filters of least L2 norm are zeroed, weights and their momentum: biases and batch norms are left. The last selection is
the network that comes out. In a residual stage the layers choose for themselves, so that only units that all of them
chose can be cut; the others are masked.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta
from torch import Tensor

from prunecli.criteria import l2
from prunecli.errors import TargetError
from prunecli.methods.gradual.filters import Filters, filters, remove, weakest, zero
from prunecli.methods.gradual.settings import Target
from prunecli.progress import Say
from prunecli.surgery.ledger import Axis
from prunecli.training import Hook, Run

OUTPUTS = "prune layers whose outputs are added to a projection's, or to a shortcut with channels appended"


class Settings(Target, frozen=True, kw_only=True):
    """Soft filter pruning has no settings of its own but which layers."""

    outputs: Annotated[bool, Meta(description=OUTPUTS)] = True


class Method(Hook):
    """Filters of every convolution, residual outputs included, projections of shortcuts left out."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    def begin(self, run: Run, say: Say) -> None:
        self.say = say
        found = filters(run, self.settings, say).values()
        self.filters = [f for f in found if self.takes(f)]
        if not self.filters:
            raise TargetError("nothing to prune: all layers are residual outputs", "add --method-arg outputs=true")

    def takes(self, filters: Filters) -> bool:
        """Is anything of these filters set to zero?"""
        return self.settings.outputs or filters.projection is None

    def before_forward(self, run: Run) -> None:
        if (run.training.epoch, run.training.step) == (0, 0):  # a snapshot of the beginning is not softened
            self.soften(run, 0)

    def after_epoch(self, run: Run) -> None:
        self.soften(run, run.training.epoch + 1)

    def end(self, run: Run) -> None:
        remove(run, self.weakest(run, 1.0), self.say)

    def soften(self, run: Run, epoch: int) -> None:
        """Set what is weakest after `epoch` epochs to zero."""
        zero(run, self.weakest(run, self.growth(epoch / max(run.training.epochs, 1))))

    def growth(self, time: float) -> float:
        """P(t) / P at `time` t / T."""
        return 1.0

    def weakest(self, run: Run, growth: float) -> dict[Axis, Tensor]:
        """The filters to zero at the rate P times `growth`, by the axis that they are slices of: bool [filters]."""
        shares = {
            (m.tensor, m.axis): f.share
            for f in self.filters
            for m in f.producers
            if m.tensor != f.projection and (self.settings.outputs or m.tensor not in f.appended)
        }
        gone = {}
        for (name, axis), share in shares.items():
            norms = l2(run.network.get_parameter(name).detach().movedim(axis, 0).flatten(1))
            gone[name, axis] = weakest(norms, share * growth)
        return gone

    def numbers(self, run: Run) -> dict[str, float]:
        time = (run.training.epoch + 1) / max(run.training.epochs, 1)
        gone = self.weakest(run, self.growth(time))
        return {"zeroed": sum(int(mine.sum()) for mine in gone.values()) / sum(map(len, gone.values()))}
