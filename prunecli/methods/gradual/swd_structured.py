"""Selective weight decay of channels: a decay on those that pruning would take, which grows until they are gone.

Tessier et al. 2022, *Rethinking Weight Decay for Efficient Neural Network Pruning*, structured. In every step the
channels with the smallest batch-norm scales are those whose removal leaves int(N (1 - sparsity)) of the network's N
parameters, or as few less as whole channels come to; the count is that of the network cut by them, found by bisection.
The penalty 1/2 a mu |w*|^2, a as for single weights, is on the scales and shifts of these channels ("structured") or on
all weights that go with them ("structuredF"); in the end they are cut.

In a residual stage the paper's batch norms behind the additions (`--arch-arg post_add_bn=true`) choose for themselves,
and what can be cut is what all of them chose. Here channels that can only be cut together are chosen together, by the
mean of their scales, so that everything that was chosen is cut; no kind of batch norm is asked for.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor

from prunecli.allocate.widths import Allocation
from prunecli.errors import TargetError
from prunecli.methods.gradual import scales
from prunecli.methods.gradual.counting import Sizes
from prunecli.methods.gradual.swd import Growth, decay, growth, warn_of_instability
from prunecli.methods.reach import candidates
from prunecli.methods.remarks import remarks
from prunecli.methods.targets import Units
from prunecli.progress import Say, short
from prunecli.surgery import Plan
from prunecli.training import Hook, Run


class Settings(Growth, frozen=True, kw_only=True):
    """Of channels; `sparsity` is the share of the network's parameters that goes."""

    variant: Annotated[
        Literal["structured", "structuredF"],
        Meta(description="what decays: scales and shifts of the channels, or all weights that go with them"),
    ] = "structuredF"


class Method(Hook):
    """The decay in every step, the cut after the last."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    def begin(self, run: Run, say: Say) -> None:
        self.say = say
        self.mu = decay(run, self.settings.mu)
        self.structure = run.structure()
        self.groups = scales.trained(run, scales.groups(run, self.structure, self.settings), say)
        parameters = dict(run.network.named_parameters())
        self.sizes = Sizes(self.groups, parameters)
        whole = sum(parameter.numel() for parameter in parameters.values())
        self.budget = math.floor(whole * (1 - self.settings.sparsity) + 1e-9)
        gammas = {name: g for name, g in scales.gammas(run.network).items() if name in self.sizes.places}
        self.gammas, self.owners = [*gammas.values()], torch.cat([self.sizes.axes[name, 0] for name in gammas])
        norms = {m.tensor for group in self.groups.values() for m in group.members if m.role == "norm"}
        decayed = norms if self.settings.variant == "structured" else self.sizes.places.keys()
        self.decayed = {name: parameters[name] for name in self.sizes.places if name in decayed}
        if (least := self.sizes.parameters(self._without(self._order()))) > self.budget:
            raise TargetError(
                f"--method {run.training.method.name}: --sparsity {self.settings.sparsity:g} leaves {self.budget:,} of "
                f"{whole:,} parameters, and one channel a layer has {least:,}",
                f"ask for at most --sparsity {math.floor((1 - least / whole) * 1e4) / 1e4:g}",
            )
        warn_of_instability(run, self.settings, self.mu, say)

    def after_backward(self, run: Run) -> None:
        factor = growth(self.settings, run.position) * self.mu
        for name, gone in self._going(run).items():
            parameter = self.decayed[name]
            if parameter.grad is not None:
                parameter.grad.addcmul_(parameter.detach(), gone, value=factor)

    def end(self, run: Run) -> None:
        kept = self._kept()
        plan = Plan()
        for key, group in self.groups.items():
            own = kept[self.sizes.first[key] : self.sizes.first[key] + group.units]
            plan.kept[key] = own.nonzero()[:, 0].tolist()
        widths = {key: len(units) for key, units in plan.kept.items()}
        how = Units("bn-scale", "global")
        found = candidates(self.groups, scales.scores(run.network, self.groups), how, None)
        held = [key for key, width in widths.items() if width == found.choices[key][0]]
        for note in remarks(found, Allocation(widths, held), how):
            self.say(f"warning: {note}")
        run.shrink(self.structure, plan)

    def numbers(self, run: Run) -> dict[str, float]:
        a, kept = growth(self.settings, run.position), self._kept()
        norm = sum(float((self.decayed[n].detach().square() * gone).sum()) for n, gone in self._going(run).items())
        scale = self._scales()
        return {
            "a": a,
            "penalty": 0.5 * a * self.mu * norm,
            "scale_going": float(scale[~kept].mean()) if not bool(kept.all()) else 0.0,
            "scale_staying": float(scale[kept].mean()),
        }

    def status(self, run: Run) -> str:
        return f"a {short(growth(self.settings, run.position))}"

    def _scales(self) -> Tensor:
        """|gamma| of each unit [units], of several batch norms the mean."""
        sizes = torch.cat([gamma.detach().abs() for gamma in self.gammas]).double().cpu()
        total = torch.zeros(self.sizes.units + 1, dtype=torch.float64).index_add_(0, self.owners, sizes)
        return (total / torch.bincount(self.owners, minlength=len(total)))[:-1]

    def _order(self) -> Tensor:
        """The units from the first to go to the last, ties by index; the largest of each axis never goes."""
        order = torch.sort(self._scales(), stable=True).indices
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        axis, unit = self.sizes.whole_axes
        last = torch.zeros(int(axis[-1]) + 1, dtype=torch.int64).scatter_reduce_(0, axis, rank[unit], "amax")
        return order[self._without(order[last])[order]]

    def _kept(self) -> Tensor:
        """Which units stay, bool [units]: as few go, smallest scales first, as leave no more than the budget."""
        order = self._order()
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            if self.sizes.parameters(self._without(order[:middle])) <= self.budget:
                high = middle
            else:
                low = middle + 1
        return self._without(order[:low])

    def _without(self, units: Tensor) -> Tensor:
        return torch.ones(self.sizes.units, dtype=torch.bool).index_fill_(0, units, False)

    def _going(self, run: Run) -> dict[str, Tensor]:
        """What of each weight goes, 1 or 0, in a shape that broadcasts over it."""
        gone = self.sizes.gone(self._kept()).to(run.device, torch.float32)
        slices = dict(zip(self.sizes.axes, gone.split(self.sizes.lengths), strict=True))
        result: dict[str, Tensor] = {}
        for (name, axis), part in slices.items():
            if name in self.decayed:
                part = part.view([-1 if d == axis else 1 for d in range(self.decayed[name].ndim)])
                result[name] = torch.maximum(result[name], part) if name in result else part
        return result
