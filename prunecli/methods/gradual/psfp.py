"""Soft filter pruning at a rate that grows: P(t) = P (1 - e^{-kt}) / (1 - e^{-kT}).

He et al. 2018, *Progressive Deep Neural Networks Acceleration via Soft Filter Pruning*: the exponential through (0, 0),
(T/8, 3P/4) and (T, P), so that kT = 8 ln 4. Residual outputs behind a projection are left whole. `curve=pgp` is what
*Progressive Gradient Pruning* compares itself with under this name: e^{-kT} = 0.147, which is P/4 at T/8, and of a weak
filter all is zeroed, its bias, its batch norm's scale, shift and statistics, and what the next layers read of it; in a
residual stage the first layer chooses for all.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from msgspec import Meta
from torch import Tensor

from prunecli.criteria import l2
from prunecli.methods.gradual import sfp
from prunecli.methods.gradual.filters import Filters, slices, unit_scores, weakest, zero
from prunecli.surgery.ledger import Axis
from prunecli.training import Run

KT = {"original": 8 * math.log(4), "pgp": -math.log(0.147)}


class Settings(sfp.Settings, frozen=True, kw_only=True):
    """The curve; residual outputs are whole."""

    curve: Annotated[Literal["original", "pgp"], Meta(description="how the rate grows: original, or pgp")] = "original"
    outputs: Annotated[bool, Meta(description=sfp.OUTPUTS)] = False


class Method(sfp.Method):
    """Soft filter pruning with a curve."""

    settings: Settings

    def takes(self, filters: Filters) -> bool:
        whole = self.settings.curve == "pgp" and not self.settings.outputs and bool(filters.appended)
        return super().takes(filters) and not whole  # whose layers choose together

    def growth(self, time: float) -> float:
        kt = KT[self.settings.curve]
        return math.expm1(-kt * time) / math.expm1(-kt)

    def soften(self, run: Run, epoch: int) -> None:
        if self.settings.curve == "original":
            super().soften(run, epoch)
        else:
            growth = self.growth(epoch / max(run.training.epochs, 1))
            zero(run, slices((f.group.members, units) for f, units in self._units(run, growth)))

    def weakest(self, run: Run, growth: float) -> dict[Axis, Tensor]:
        if self.settings.curve == "original":
            return super().weakest(run, growth)
        return slices((f.producers, units) for f, units in self._units(run, growth))

    def _units(self, run: Run, growth: float) -> list[tuple[Filters, Tensor]]:
        """The weakest units of each group."""
        weights = dict(run.network.named_parameters())
        return [(f, weakest(unit_scores(f, weights, l2), f.share * growth).nonzero().flatten()) for f in self.filters]
