"""Soft filter pruning: after every epoch the weakest filters are set to zero, and go on training.

He et al. 2018, *Soft Filter Pruning for Accelerating Deep CNNs*, algorithm 1; and, with a rate that grows, Cai et al.
2021 (PSFP), P(t) = P (1 - e^{-kt}) / (1 - e^{-kT}) through (0, 0), (T/8, 3P/4), (T, P). In each convolution by itself
floor(n P) filters of least L2 norm are zeroed, weights alone: biases and batch norms are left. The last selection is
the network that comes out. In a residual stage the layers choose for themselves, so that only units that all of them
chose can be cut; the others are masked.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from prunecli.allocate.counts import GUARD
from prunecli.criteria import l2
from prunecli.methods.gradual.filters import filters, remove, zero
from prunecli.methods.gradual.settings import Target
from prunecli.progress import Say
from prunecli.surgery.ledger import Axis
from prunecli.training import Hook, Run


class Settings(Target, frozen=True, kw_only=True):
    """Soft filter pruning has no settings of its own but which layers."""

    outputs: Annotated[bool, Meta(description="whether layers whose outputs are added up are pruned too")] = True


class Method(Hook):
    """Filters of every convolution, residual outputs included, projections of shortcuts left out."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    def begin(self, run: Run, say: Say) -> None:
        found = filters(run, self.settings, say)
        self.shares: dict[Axis, float] = {
            (member.tensor, member.axis): group.share
            for group in found.values()
            for member in group.producers
            if member.tensor != group.projection and (self.settings.outputs or group.projection is None)
        }
        if (run.training.epoch, run.training.step) == (0, 0):
            zero(run, self._weakest(run, 0))

    def after_epoch(self, run: Run) -> None:
        zero(run, self._weakest(run, run.training.epoch + 1))

    def end(self, run: Run) -> None:
        remove(run, self._weakest(run, run.training.epochs))

    def rate(self, share: float, epoch: int, epochs: int) -> float:
        """The share that is zero after `epoch` of `epochs`."""
        return share

    def numbers(self, run: Run) -> dict[str, float]:
        gone = self._weakest(run, run.training.epoch + 1)
        return {"filters": sum(int(slices.sum()) for slices in gone.values()) / sum(map(len, gone.values()))}

    def _weakest(self, run: Run, epoch: int) -> dict[Axis, Tensor]:
        parameters = dict(run.network.named_parameters())
        gone = {}
        for (name, axis), share in self.shares.items():
            norms = l2(parameters[name].detach().movedim(axis, 0).flatten(1))
            count = math.floor(len(norms) * self.rate(share, epoch, run.training.epochs) + GUARD)
            gone[name, axis] = torch.zeros_like(norms, dtype=torch.bool)
            gone[name, axis][torch.sort(norms, stable=True).indices[: min(count, len(norms) - 1)]] = True
        return gone
