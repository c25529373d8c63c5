"""Sparse Structure Selection of channels: a factor on each, which a proximal step drives to exactly zero.

Huang and Wang 2018, *Data-Driven Sparse Structure Selection for Deep Neural Networks*: min loss + gamma |lambda|_1 over
the weights and a factor lambda a channel, 1 at first, without weight decay. With gradient g, rate eta and momentum mu

    z = S_{eta gamma}(lambda - eta g)    v = mu v + z - lambda    lambda = z + mu v

and, in the authors' code alone, max(lambda, 0) after it. A factor multiplies what a batch norm puts out, so it needs no
module of its own: the forward pass sees scale and shift times lambda, and g is what their gradients say. In the end
lambda is multiplied into them for good, and channels are cut whose every factor is zero. Factors of whole residual
branches and of groups of convolutions are not offered: a network of the same architecture has no place for a branch
that is not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor, nn

from prunecli.methods.gradual import scales
from prunecli.methods.gradual.settings import Layers, Positive
from prunecli.progress import Say
from prunecli.surgery import Plan
from prunecli.training import Hook, Run

Momentum = Annotated[float, Meta(ge=0, lt=1)]


class Settings(Layers, frozen=True, kw_only=True):
    """How much goes follows from `gamma`."""

    gamma: Annotated[Positive, Meta(description="weight of the penalty on the factors")] = 0.01
    momentum: Annotated[Momentum | None, Meta(description="mu (default: the run's, 0.9 where it has none)")] = None
    clip: Annotated[bool, Meta(description="whether factors stay above zero, as in the authors' code")] = True


class Method(Hook):
    """`tensors` has the factors and their velocities, by the name of the batch norm's scale."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    def begin(self, run: Run, say: Say) -> None:
        self.say = say
        groups = scales.groups(run, run.structure(), self.settings)
        behind = {member.tensor for group in groups.values() for member in group.members}
        gammas = {name: gamma for name, gamma in scales.gammas(run.network).items() if name in behind}
        if not self.tensors:
            self.tensors["lambda"] = {name: torch.ones_like(gamma) for name, gamma in gammas.items()}
            self.tensors["velocity"] = {name: torch.zeros_like(gamma) for name, gamma in gammas.items()}
        parameters = dict(run.network.named_parameters())
        shifts = {name: parameters.get(name.removesuffix("weight") + "bias") for name in gammas}
        self.pairs: list[tuple[str, nn.Parameter]] = [*gammas.items()]
        self.pairs += [(name, shift) for name, shift in shifts.items() if shift is not None]
        self._aside: list[Tensor] = []

    def before_forward(self, run: Run) -> None:
        weights = [parameter.data for _, parameter in self.pairs]
        self._aside = [weight.clone() for weight in weights]
        torch._foreach_mul_(weights, self._factors())

    def after_backward(self, run: Run) -> None:
        self._put_back()
        slopes = {name: torch.zeros_like(factor) for name, factor in self.tensors["lambda"].items()}
        for (name, parameter), factor in zip(self.pairs, self._factors(), strict=True):
            if parameter.grad is not None:
                slopes[name].addcmul_(parameter.data, parameter.grad)
                parameter.grad.mul_(factor)
        self._slopes = slopes

    def after_step(self, run: Run) -> None:
        group = run.optimizer.param_groups[0]
        rate, momentum = float(group["lr"]), self.settings.momentum
        momentum = float(group.get("momentum", 0.9)) if momentum is None else momentum
        factors, velocities = self.tensors["lambda"].values(), self.tensors["velocity"].values()
        for factor, velocity, slope in zip(factors, velocities, self._slopes.values(), strict=True):
            near = nn.functional.softshrink(factor - rate * slope, rate * self.settings.gamma)
            velocity.mul_(momentum).add_(near - factor)
            factor.copy_(near + momentum * velocity)
            if self.settings.clip:
                factor.clamp_(min=0)

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        self.before_forward(run)
        try:
            yield
        finally:
            self._put_back()

    def end(self, run: Run) -> None:
        self.before_forward(run)  # and nothing is put back
        structure, plan = run.structure(), Plan()
        factors, self.tensors = self.tensors["lambda"], {}
        for key, group in scales.groups(run, structure, self.settings).items():
            alive = torch.zeros(group.units + 1, dtype=torch.bool)
            for member in (member for member in group.members if member.tensor in factors):
                alive[member.unit[factors[member.tensor].cpu() != 0]] = True
            plan.kept[key] = alive[:-1].nonzero()[:, 0].tolist() or [0]
            if not bool(alive[:-1].any()):
                self.say(f"warning: {key} keeps one unit: a layer never loses all")
        run.shrink(structure, plan)

    def numbers(self, run: Run) -> dict[str, float]:
        flat = torch.cat([*self.tensors["lambda"].values()])
        return {"penalty": self.settings.gamma * float(flat.abs().sum()), "zero": float((flat == 0).double().mean())}

    def _factors(self) -> list[Tensor]:
        return [self.tensors["lambda"][name] for name, _ in self.pairs]

    def _put_back(self) -> None:
        torch._foreach_copy_([parameter.data for _, parameter in self.pairs], self._aside)
