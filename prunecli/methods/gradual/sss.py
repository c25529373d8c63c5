"""Sparse Structure Selection: factors on channels, groups or blocks, which proximal steps drive to exactly zero.

Huang and Wang 2018, *Data-Driven Sparse Structure Selection for Deep Neural Networks*: min loss + gamma |lambda|_1 over
the weights and a factor lambda a structure, 1 at first, without weight decay. With gradient g, rate eta, momentum mu

    z = S_{eta gamma}(lambda - eta g)    v = mu v + z - lambda    lambda = z + mu v

and, in the authors' code alone, max(lambda, 0) after it. A factor multiplies what a layer puts out: the batch norm
behind a channel or a group of a convolution, the last layer of a residual branch. So it needs no module of its own: the
forward pass sees weight and bias times lambda, and g is what their gradients say. In the end lambda is multiplied into
them for good, and what has none but factors of zero goes: channels and groups are cut, and of a residual block the
shortcut is left, identity or projection.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn

from prunecli.methods.gradual import structures
from prunecli.methods.gradual.saved import check_all
from prunecli.methods.gradual.settings import Layers, Positive
from prunecli.progress import Say
from prunecli.training import Hook, Run

Momentum = Annotated[float, Meta(ge=0, lt=1)]


class Settings(Layers, frozen=True, kw_only=True):
    """How much goes follows from `gamma`."""

    structures: Annotated[
        Literal["channels", "groups", "blocks"],
        Meta(description="what has a factor: channels, groups of convolutions in groups, or whole residual branches"),
    ] = "channels"
    gamma: Annotated[Positive, Meta(description="weight of the penalty on the factors")] = 0.01
    momentum: Annotated[Momentum | None, Meta(description="mu (default: the run's, 0.9 where it has none)")] = None
    clip: Annotated[bool, Meta(description="whether factors stay above zero, as in the authors' code")] = True


class Method(Hook):
    """`tensors` has the factors and their velocities, by the name of the weight that they multiply."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    def begin(self, run: Run, say: Say) -> None:
        self.say = say
        self.scaled = structures.find(self.settings.structures, run, self.settings, say)
        parameters = dict(run.network.named_parameters())
        self.pairs = [(s.name, parameters[name]) for s in self.scaled for name in s.parameters]
        if not self.tensors:
            ones = {s.name: parameters[s.name].new_ones(s.count, requires_grad=False) for s in self.scaled}
            self.tensors["lambda"] = ones
            self.tensors["velocity"] = {name: torch.zeros_like(factor) for name, factor in ones.items()}
        for kind in ("lambda", "velocity"):
            saved = self.tensors.get(kind, {})
            check_all(kind, saved, {s.name: (s.count,) for s in self.scaled}, torch.float32)
            self.tensors[kind] = {s.name: saved[s.name] for s in self.scaled}  # in this order
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
                slopes[name] += structures.gathered(parameter.data * parameter.grad, len(slopes[name]))
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
        factors, self.tensors = self.tensors["lambda"], {}
        structures.remove(self.scaled, factors, run, self.settings, self.say)

    def numbers(self, run: Run) -> dict[str, float]:
        flat = torch.cat([*self.tensors["lambda"].values()])
        return {"penalty": self.settings.gamma * float(flat.abs().sum()), "zero": float((flat == 0).double().mean())}

    def _factors(self) -> list[Tensor]:
        return [structures.spread(self.tensors["lambda"][name], parameter) for name, parameter in self.pairs]

    def _put_back(self) -> None:
        torch._foreach_copy_([parameter.data for _, parameter in self.pairs], self._aside)
