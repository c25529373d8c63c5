"""Growing regularisation, what GReg-1 and GReg-2 share: a penalty that grows step by step until filters are gone.

Wang et al. 2021, *Neural Pruning via Growing Regularization*. lambda w is added to the gradients of chosen filters (or
single weights) beside weight decay. Every K_u steps lambda grows, up to tau; there it stays for K_s steps; then what
was chosen is removed. As in the authors' code, growth also ends where the moving ratio of the mean |w| of kept and
pruned filters has reached 1000, and the K_s steps begin there. Weights alone are penalised, no biases or batch norms.

A batch norm makes up for small weights until they are below its eps, and makes ever larger gradients of them: the loss
jumps, and what goes is not gone. With `norms` its scale and shift vanish together with the filter.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn

from prunecli.errors import UsageError
from prunecli.methods.gradual.filters import remove
from prunecli.methods.gradual.parts import Part, filter_parts, pick, weight_parts
from prunecli.methods.gradual.saved import check
from prunecli.methods.gradual.settings import Positive, Target
from prunecli.methods.outcome import listed
from prunecli.progress import Say, silent
from prunecli.surgery.structure import layer_of
from prunecli.training import Hook, Run, hook

MOVING = 0.9  # what a moving ratio keeps of itself
FEW = 32  # layers of which each is logged
SMALL = 100.0  # times larger what stays is, in mean |w|, than what may go without a word
TINY = 1e-30  # in place of a norm of 0
Steps = Annotated[int, Meta(ge=1)]


class Growth(Target, frozen=True, kw_only=True):
    """How the penalty grows."""

    structure: Annotated[Literal["filters", "weights"], Meta(description="what is pruned: filters or weights")] = (
        "filters"
    )
    tau: Annotated[Positive, Meta(description="penalty factor at which growth ends (ceiling)")] = 1.0
    delta: Annotated[Positive, Meta(description="growth of the penalty factor")] = 1e-4
    k_u: Annotated[Steps, Meta(description="number of steps between two increments of the penalty factor")] = 10
    k_s: Annotated[int, Meta(ge=0, description="number of steps that the full penalty acts before the removal")] = 5000
    norms: Annotated[
        bool, Meta(description="penalise scale and shift of the normalisation behind a filter that goes, too (filters)")
    ] = False
    stop_ratio: Annotated[
        float, Meta(ge=0, description="ratio of kept to pruned |w| at which growth ends early (filters; 0: never)")
    ] = 1000.0


class State(hook.State):
    """`ratios`: moving ratio of kept to pruned |w|; `stopped`: increments after which growth ended; both by weight.

    `held`: step at which the last one had stopped, and the penalty began to act in full.
    """

    ratios: dict[str, float] = {}  # noqa: RUF012  # msgspec copies it
    stopped: dict[str, int] = {}  # noqa: RUF012
    held: int | None = None


class Growing(Hook, ABC):
    """What is to go is in `tensors["pruned"]`, by weight, once it is picked."""

    State = State
    together = True  # does growth end for all layers at once?

    def __init__(self, settings: Growth) -> None:
        super().__init__()
        self.growth = settings

    @property
    @abstractmethod
    def increments(self) -> int:
        """How often the penalty grows until it has reached tau."""

    @abstractmethod
    def factor(self, increments: int) -> float:
        """lambda after so many increments."""

    def scope(self, run: Run, say: Say) -> list[Part]:
        """The parts to work on, the same when a run begins and when it goes on."""
        if self.growth.structure == "filters":
            return filter_parts(run, self.growth, say)
        return weight_parts(run, self.growth, say)

    def choose(self, run: Run, say: Say) -> None:
        """Before an increment, the one of number `self.made`: what is to go may be put into `pruned`."""

    def stays(self, run: Run) -> float:
        """The penalty factor of weights that stay, once it is known which ones go."""
        return 0.0

    @property
    def pruned(self) -> dict[str, Tensor]:
        """What is to go, bool, in shapes that broadcast over the weights; empty before it is picked."""
        return self.tensors.setdefault("pruned", {})

    def epochs(self, steps: int) -> int:
        return math.ceil((self.growth.k_u * self.increments + self.growth.k_s) / steps)

    def begin(self, run: Run, say: Say) -> None:
        self.say = say
        if _done(run) == 0:
            self._check_length(run)
            _warn_of_instability(run, self.growth.tau, say)
        self.parts = self.scope(run, say)
        self.weights = {name: weight for part in self.parts for name, weight in part.weights.items()}
        check("pruned", self.pruned, {name: s for part in self.parts for name, s in part.shapes().items()}, torch.bool)
        self.made = math.ceil(_done(run) / self.growth.k_u)  # increments, as if none had stopped
        if _done(run) == 0:
            self.choose(run, say)
        self._set_factors(run)

    def after_backward(self, run: Run) -> None:
        if self.state.held is None and _done(run) % self.growth.k_u == 0:
            self._grow(run)
        terms = [(weight.grad, weight, factor) for weight, factor in self.factors if weight.grad is not None]
        with torch.no_grad():
            torch._foreach_addcmul_(*map(list, zip(*terms, strict=True)))

    def after_epoch(self, run: Run) -> None:
        if self.state.held is not None and _done(run) >= self.state.held + self.growth.k_s:
            run.training.epochs = run.training.epoch + 1  # the penalty has done its work

    def end(self, run: Run) -> None:
        ratios = {layer_of(name): _ratio(*pair) for name, pair in self._norms(self.pruned).items()}
        if large := [f"{layer} (1/{ratio:.3g})" for layer, ratio in ratios.items() if ratio < SMALL]:
            self.say(
                f"warning: mean |w| of what goes is not yet small beside what stays: {listed(large)}; let the penalty "
                "act longer (--method-arg k_s=...) or more strongly (tau, delta)"
            )
        if self.growth.structure == "weights":
            run.mask({name: ~mask for name, mask in self.pruned.items()})
            return
        members = [member for part in self.parts for member in part.members if member.tensor in self.pruned]
        remove(run, {(m.tensor, m.axis): self.pruned[m.tensor].flatten() for m in members}, self.say)

    def numbers(self, run: Run) -> dict[str, float]:
        norms = self._norms(self.pruned or pick(run, self.parts, "l1", 0, silent))
        kept, gone = (sum(column) / len(norms) for column in zip(*norms.values(), strict=True))
        log = {"lambda": self._lambda(), "kept_norm": kept, "pruned_norm": gone, "ratio": _ratio(kept, gone)}
        if len(norms) <= FEW:
            log |= {f"ratio/{layer_of(name)}": _ratio(*pair) for name, pair in norms.items()}
        return log

    def status(self, run: Run) -> str:
        phase = "growing" if self.state.held is None else "stabilising"
        least = [f"ratio {ratio:.3g}" for ratio in sorted(self.state.ratios.values())[:1]]
        return "  ".join([phase, f"lambda {self._lambda():.3g}", *least])

    def _grow(self, run: Run) -> None:
        """The next increment, for the layers whose growth is not over."""
        self.made = _done(run) // self.growth.k_u
        self.choose(run, silent)
        ended = list(self.pruned) if self.made == self.increments else self._vanished()
        self.state.stopped |= {name: self.made for name in ended if name not in self.state.stopped}
        if self.pruned and len(self.state.stopped) == len(self.pruned):
            self.state.held = _done(run)
        self.made += 1
        self._set_factors(run)

    def _vanished(self) -> list[str]:
        """The weights in which the moving ratio says that growth is over."""
        if self.growth.structure == "weights" or not self.growth.stop_ratio or not self.pruned:
            return []
        ratios = self.state.ratios
        for name, pair in self._norms(self.pruned).items():
            ratios[name] = MOVING * ratios.get(name, _ratio(*pair)) + (1 - MOVING) * _ratio(*pair)
        found = [name for name, ratio in ratios.items() if ratio >= self.growth.stop_ratio]
        return found if len(found) == len(ratios) or not self.together else []

    def _set_factors(self, run: Run) -> None:
        """The penalty factors, as tensors that broadcast over the weights, of all weights that have one."""
        self.factors: list[tuple[nn.Parameter, Tensor]] = []
        stays = self.stays(run) if self.pruned else 0.0
        for name, weight in self.weights.items():
            factor = self.factor(min(self.made, self.state.stopped.get(name, self.increments)))
            if name in self.pruned:
                self.factors.append((weight, torch.where(self.pruned[name], factor, stays).to(weight.dtype)))
            elif stays or not self.pruned:
                self.factors.append((weight, weight.new_full((), stays if self.pruned else factor)))
        norms: dict[nn.Parameter, Tensor] = {}  # each once, with channels of several parts
        for part in self.parts if self.growth.norms else ():
            for norm, going in part.behind(self.pruned):
                first = next(member.tensor for member in part.members if member.tensor in self.pruned)
                factor = self.factor(min(self.made, self.state.stopped.get(first, self.increments)))
                norms[norm] = norms.get(norm, 0.0) + factor * going.to(norm)
        self.factors += norms.items()

    def _lambda(self) -> float:
        """The largest penalty factor."""
        stopped = self.state.stopped
        running = len(stopped) < max(len(self.pruned), 1)
        return self.factor(min(self.made, self.increments) if running else max(stopped.values()))

    def _norms(self, pruned: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
        """Mean |w| of what stays and of what goes, by weight."""
        weights = [self.weights[name].detach() for name in pruned]
        masks = [mask.to(weight.dtype) for weight, mask in zip(weights, pruned.values(), strict=True)]
        gone = torch._foreach_norm(torch._foreach_mul(weights, masks), 1)
        sums = torch.stack([*torch._foreach_norm(weights, 1), *gone, *[mask.mean() for mask in masks]]).tolist()
        found, count = {}, len(weights)
        for i, (name, weight) in enumerate(zip(pruned, weights, strict=True)):
            whole, part, share = sums[i], sums[count + i], sums[2 * count + i]
            found[name] = (whole - part) / (weight.numel() * max(1 - share, TINY)), part / (weight.numel() * share)
        return found

    def _check_length(self, run: Run) -> None:
        """Raise `UsageError` for a run that would end before the penalty has done its work."""
        epochs, needed = run.training.epochs, self.epochs(run.steps)
        if epochs < needed:
            raise UsageError(
                f"--epochs {epochs}: the penalty grows and acts for {needed} epochs of {run.steps} steps, and what is "
                "removed before would leave a gap, as in one-shot pruning",
                f"leave --epochs out (the run ends early where it can), give --epochs {needed}, or let the penalty "
                "grow faster: --method-arg delta=..., k_u=..., k_s=...",
            )


def _done(run: Run) -> int:
    """Steps that are over."""
    return run.training.epoch * run.steps + run.training.step


def _ratio(kept: float, gone: float) -> float:
    return kept / max(gone, TINY)


def _warn_of_instability(run: Run, tau: float, say: Say) -> None:
    """Say the largest tau with which SGD is stable, where the run's is larger: lr (tau + mu) < 2 (1 + momentum)."""
    group = run.optimizer.param_groups[0]
    if isinstance(run.optimizer, torch.optim.SGD):
        limit = 2 * (1 + group["momentum"]) / run.training.lr - group["weight_decay"]
        if tau > limit:
            say(f"warning: tau {tau:g} makes SGD unstable at this learning rate; the largest safe tau is {limit:.3g}")
