"""Network Slimming: a penalty on batch-norm scales, and a cut of the channels with the smallest.

Liu et al. 2017, *Learning Efficient Convolutional Networks through Network Slimming*: loss + lambda sum |gamma| over
all batch norms, through the subgradient lambda sign(gamma), beside the run's weight decay. At the end the share
`sparsity` of the channels that a batch norm follows is cut, exactly so many over all layers, ties by index; their
shifts go with them, as in the authors' code. Tessier et al. 2022 penalise a smooth variant, gamma² up to 1 and |gamma|
beyond (their code has the latter unsigned). A channel of several batch norms, as in a residual stage, ranks by the mean
of their scales.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from msgspec import Meta, field
from torch import Tensor, nn

from prunecli.methods import METHODS
from prunecli.methods.gradual import scales
from prunecli.methods.gradual.layers import is_new
from prunecli.methods.gradual.settings import Layers, Positive, Share
from prunecli.methods.reach import Candidates, candidates, reach
from prunecli.methods.remarks import caveats, remarks
from prunecli.methods.targets import Target, Units
from prunecli.progress import Say, silent
from prunecli.surgery import Plan, Structure
from prunecli.surgery.compensate import compensate
from prunecli.training import Hook, Run


class Settings(Layers, frozen=True, kw_only=True):
    """Without `sparsity` nothing is cut: `prune --method bn-scale` does so later."""

    sparsity: Share | None = None
    strength: Annotated[
        Positive, Meta(description="lambda of the penalty: 1e-4 for VGG, 1e-5 for PreResNet, DenseNet and ImageNet")
    ] = field(default=1e-4, name="lambda")
    penalty: Annotated[Literal["l1", "smooth"], Meta(description="|gamma|, or gamma² up to 1 and |gamma| beyond")] = (
        "l1"
    )
    gamma: Annotated[Positive, Meta(description="scale that a new network starts from, in `train` without --init")] = (
        0.5
    )
    compensate: Annotated[
        bool, Meta(description="fold the shifts of channels that go into the layers that read them")
    ] = False


class Method(Hook):
    """The penalty in every step, the cut after the last."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.how = Units("bn-scale", METHODS["bn-scale"].scope)

    def begin(self, run: Run, say: Say) -> None:
        self.say = say
        structure = run.structure()
        groups = scales.trained(run, scales.groups(run, structure, self.settings), say)
        self.gammas = scales.gammas(run.network)
        if self.settings.only or self.settings.skip:
            behind = {member.tensor for group in groups.values() for member in group.members}
            self.gammas = {name: gamma for name, gamma in self.gammas.items() if name in behind}
        if not run.position and is_new(run):
            for gamma in self.gammas.values():
                gamma.data.fill_(self.settings.gamma)
        self._choose(run, structure)  # a share that cannot go is refused now

    def after_backward(self, run: Run) -> None:
        gammas = self.gammas.values()
        slopes = self._slope(self._flat()).split([gamma.numel() for gamma in gammas])
        used = [(g.grad, slope) for g, slope in zip(gammas, slopes, strict=True) if g.grad is not None]
        torch._foreach_add_([grad for grad, _ in used], [slope for _, slope in used], alpha=self.settings.strength)

    def end(self, run: Run) -> None:
        structure = run.structure()
        plan, notes = self._choose(run, structure)
        if self.settings.compensate:
            _silence(self.gammas, structure, plan)
            notes += caveats(compensate(run.network, structure, plan, run.examples()))
        for note in notes:
            self.say(f"warning: {note}")
        run.shrink(structure, plan)

    def numbers(self, run: Run) -> dict[str, float]:
        flat = self._flat()
        return {
            "penalty": self.settings.strength * float(self._value(flat).sum()),
            "scales_below_0.01": float((flat.abs() < 0.01).double().mean()),
        }

    def _flat(self) -> Tensor:
        return torch.cat([gamma.detach() for gamma in self.gammas.values()])

    def _value(self, gamma: Tensor) -> Tensor:
        size = gamma.abs()
        return size if self.settings.penalty == "l1" else torch.where(size <= 1, size.square(), size)

    def _slope(self, gamma: Tensor) -> Tensor:
        sign = gamma.sign()
        return sign if self.settings.penalty == "l1" else torch.where(gamma.abs() <= 1, 2 * gamma, sign)

    def _choose(self, run: Run, structure: Structure) -> tuple[Plan, list[str]]:
        """What goes, and what is to be said of it."""
        groups = scales.trained(run, scales.groups(run, structure, self.settings), silent)
        found: Candidates = candidates(groups, scales.scores(run.network, groups), self.how, None)
        allocation = reach(Target(share=self.settings.sparsity or 0.0), found, self.how, structure, run.cost)
        return found.plan(allocation.widths), remarks(found, allocation, self.how)


def _silence(gammas: dict[str, nn.Parameter], structure: Structure, plan: Plan) -> None:
    """Zero the scales of the channels that go: they are then the constants that their shifts make."""
    for key, kept in plan.kept.items():
        for member in (member for member in structure.by_key[key].members if member.tensor in gammas):
            gone = (member.unit >= 0) & ~torch.isin(member.unit, torch.tensor(kept))
            gammas[member.tensor].data[gone.to(gammas[member.tensor].device)] = 0
