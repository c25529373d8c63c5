"""Selective weight decay: a decay on the weights that pruning would take, which grows until they are gone.

Tessier et al. 2022, *Rethinking Weight Decay for Efficient Neural Network Pruning*, algorithm 1. The penalty is that of
the authors' code, 1/2 a mu |w*|^2, whose gradient a mu w* is that of SGD's weight decay (the paper writes the norm
unsquared). w* are the weights of smallest magnitude over all layers, chosen anew in every step by exact count.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from prunecli.allocate.masks import by_rank, lowest
from prunecli.errors import UsageError
from prunecli.methods.gradual.layers import weights
from prunecli.methods.gradual.settings import Layers, Positive, Share
from prunecli.methods.outcome import listed
from prunecli.progress import Say, short
from prunecli.surgery.structure import layer_of
from prunecli.training import Hook, Run
from prunecli.training.schedule import factor


class Growth(Layers, frozen=True, kw_only=True):
    """`a` grows from a_min to a_max."""

    sparsity: Share
    a_min: Annotated[Positive, Meta(description="strength a at the first step (equation 3)")] = 0.1
    a_max: Annotated[Positive, Meta(description="strength a after the last step (equation 3)")] = 1e4
    mu: Annotated[Positive | None, Meta(description="decay that a multiplies (default: the run's weight decay)")] = None

    def __post_init__(self) -> None:
        if self.a_max < self.a_min:
            raise ValueError(f"a_max {self.a_max:g} is below a_min {self.a_min:g}")


class Settings(Growth, frozen=True, kw_only=True):
    """Of single weights."""

    biases: Annotated[bool, Meta(description="whether biases are ranked and masked with the weights")] = False


class Method(Hook):
    """Unstructured: single weights of convolutions and linear layers, never of normalisations."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    def begin(self, run: Run, say: Say) -> None:
        self.say = say
        self.mu = decay(run, self.settings.mu)
        self.weights = weights(run, self.settings, say, biases=self.settings.biases)
        self.count = math.floor(sum(w.numel() for w in self.weights.values()) * self.settings.sparsity + 1e-9)
        warn_of_instability(run, self.settings, self.mu, say)

    def after_backward(self, run: Run) -> None:
        found = zip(self.weights.values(), self._smallest(), strict=True)
        terms = [(w.grad, w.detach() * gone) for w, gone in found if w.grad is not None]  # frozen weights have none
        gradients, chosen = ([*column] for column in zip(*terms, strict=True))
        torch._foreach_add_(gradients, chosen, alpha=self.strength(run) * self.mu)

    def end(self, run: Run) -> None:
        sizes = {name: weight.detach().abs() for name, weight in self.weights.items()}
        least = {name: int(weight.ndim > 1) for name, weight in self.weights.items()}  # with none nothing gets through
        kept, held = by_rank(sizes, {}, self.count, least)
        if held:
            self.say(f"warning: {listed([layer_of(name) for name in held])}: all weights are small, the largest stays")
        run.mask(kept)

    def strength(self, run: Run) -> float:
        """a(s) = a_min (a_max / a_min)^(s / S) at step s of S, equation 3."""
        return growth(self.settings, run.position)

    def numbers(self, run: Run) -> dict[str, float]:
        a, gone = self.strength(run), self._smallest()
        norm = sum(float((w.detach() * g).square().sum()) for w, g in zip(self.weights.values(), gone, strict=True))
        return {"a": a, "penalty": 0.5 * a * self.mu * norm}

    def status(self, run: Run) -> str:
        return f"a {short(self.strength(run))}"

    def _smallest(self) -> list[Tensor]:
        """True for the `count` smallest weights over all layers, in the weights' shapes; ties go by index."""
        magnitudes = torch.cat([w.detach().abs().flatten() for w in self.weights.values()])
        sizes = [w.numel() for w in self.weights.values()]
        parts = torch.split(lowest(magnitudes, self.count), sizes)
        return [part.view_as(w) for part, w in zip(parts, self.weights.values(), strict=True)]


def growth(settings: Growth, position: float) -> float:
    """a at `position`, the share of the run's steps that is over."""
    return float(settings.a_min * (settings.a_max / settings.a_min) ** position)


def decay(run: Run, mu: float | None) -> float:
    """What a multiplies: `mu`, else the run's weight decay. Raises `UsageError` where that is 0."""
    decay = mu if mu is not None else float(run.optimizer.param_groups[0].get("weight_decay", 0.0))
    if not decay:
        name = run.training.method.name
        raise UsageError(f"--method {name}: the weight decay that it multiplies is 0", "give one: --method-arg mu=5e-4")
    return decay


def warn_of_instability(run: Run, settings: Growth, mu: float, say: Say) -> None:
    """Say the largest a_max with which SGD is stable, where the run's is larger: lr mu a < 2 (1 + momentum)."""
    group, training = run.optimizer.param_groups[0], run.training
    if not isinstance(run.optimizer, torch.optim.SGD) or not training.epochs:
        return
    limit = 2 * (1 + group["momentum"])
    places = [number / 1000 for number in range(1, 1001)]
    rates = [training.lr * factor(training.schedule, training.epochs, p * training.epochs - 1e-6) for p in places]
    growths = [  # logarithms of the largest a_max / a_min that keeps a(s) below the limit at each place
        math.log(limit / (rate * mu * settings.a_min)) / place
        for rate, place in zip(rates, places, strict=True)
        if rate > 0
    ]
    if growths and math.log(settings.a_max / settings.a_min) > (least := min(growths)):
        way = f"the largest safe a_max of this run is {settings.a_min * math.exp(least):.3g}"
        say(
            f"warning: --method {training.method.name}: a_max {settings.a_max:g} makes SGD unstable, as lr x mu x a "
            f"reaches more than {limit:g}; {way if least > 0 else 'no a_max is safe, lower --lr'}"
        )
