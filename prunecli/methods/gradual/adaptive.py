"""Adaptive sparsity: every forward pass sees each layer without its weights below a bound, which is learned.

Retsinas et al. 2020, *Weight Pruning via Adaptive Sparsity Loss*. W~ = t T(W / t) with t = b sigma, where T zeroes what
is below 1 and passes gradients straight through, so that dL/dW = dL/dW~ and dL/db = sum of (w~ - w) / b dL/dw~. The
bounds go down the gradient of L plus the sparsity loss (equation 18). Modes `ga` and `bs` keep the share of each layer
fixed instead: b from the Gaussian, or t from a binary search.

The paper has bounds in weight units in some equations and in standard deviations in others: these are the latter
throughout. From the authors' code, the paper being silent: bounds start at 0.6 of the share asked and stay within 0 to
5, t has 1e-6 added, weights are moved to mean zero in every step (of a trained network, which that would break, only on
request), layers below 1000 weights stay dense, and the bounds' own SGD has a hundredth of the rate, the same momentum,
no decay. The stray 1/N of equation 8 is dropped, and of the
code's one-sided budget the wrong sign is not taken over. Here alone: a budget counts what a layer has left, since
trained weights are not Gaussian enough to attain it (`density=gaussian` is the paper's); its gradient is the paper's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from prunecli.allocate.patterns import share_of
from prunecli.errors import DamagedError, TargetError
from prunecli.methods.gradual.adaptive_setup import Settings, in_scope, limits, terms
from prunecli.methods.gradual.bounds import TOLERANCE, bound_at, remaining, search
from prunecli.methods.gradual.layers import is_new
from prunecli.progress import Say
from prunecli.surgery.structure import layer_of
from prunecli.training import Hook, Run, State


class Started(State):
    """`centre`: are weights moved to mean zero? Said when the run begins."""

    centre: bool | None = None


EVERY = 20  # steps between two counts for the status


class Method(Hook):
    """Single weights of convolutions and linear layers; biases and normalisation stay dense."""

    State = Started

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    def begin(self, run: Run, say: Say) -> None:
        settings = self.settings
        self.say, self.told, self.learned = say, "", settings.mode == "adaptive"
        if self.state.centre is None:
            self.state.centre = is_new(run) if settings.centre is None else settings.centre
        self.weights = in_scope(run, settings, say)
        self.parameters = list(self.weights.values())
        self.masks = [run.masks.get(name) for name in self.weights]
        sizes = [w.numel() if m is None else int(m.sum()) for w, m in zip(self.parameters, self.masks, strict=True)]
        self.sizes = torch.tensor(sizes, dtype=torch.float32, device=run.device)  # what was masked before is not there
        self.shares = [share_of([layer_of(n)], settings.ratios) or settings.sparsity or 0.0 for n in self.weights]
        self.range = limits(settings, [layer_of(name) for name in self.weights], run.device)
        self.terms = terms(run, settings, dict(zip(self.weights, sizes, strict=True)), self.shares)
        asked = max([term.share for term in self.terms if term.share is not None] or [0.5])
        shares = [0.6 * asked] * len(sizes) if self.learned else self.shares
        start = torch.tensor([bound_at(s) for s in shares], device=run.device).clamp(*self.range)
        self.bounds = self._kept("bound", start)
        self.velocity = self._kept("bound_momentum", torch.zeros_like(self.bounds))
        if settings.mode == "ga" and not run.position:
            self._refuse_empty()

    def before_forward(self, run: Run) -> None:
        sparse = self._sparse()
        self._hide(sparse)
        if run.training.step % EVERY == 0:
            self.told = f"sparsity {1 - float(self._left(sparse).sum() / self.sizes.sum()):.1%}"
            if self.learned:
                self.told += f"  penalty {self._penalty(sparse):.3g}"

    def after_backward(self, run: Run) -> None:
        sparse = self._restore()
        gradients = [w.grad if w.grad is not None else torch.zeros_like(w) for w in self.parameters]
        if not self.settings.ste:
            torch._foreach_mul_(gradients, [w != 0 for w in sparse])
        if self.learned:
            self._move(run, self._slope(sparse, gradients))

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        self._hide(self._sparse())
        try:
            yield
        finally:
            self._restore()

    def end(self, run: Run) -> None:
        sparse = self._sparse()
        kept = {name: w != 0 for name, w in zip(self.weights, sparse, strict=True)}
        for name, mask in kept.items():
            if not mask.any():  # the layer would pass nothing on
                magnitudes = self.weights[name].detach().abs()
                mask |= magnitudes == magnitudes.max()
                self.say(f"warning: {layer_of(name)}: no weight is above the bound; the largest stays")
        run.mask(kept)
        self._tell_of_limits(1 - self._left(sparse) / self.sizes)
        for term in self.terms:
            over = float(term.over(self._left(sparse) / self.sizes)) if term.budget is not None else 0.0
            if term.budget is not None and abs(over) > 0.01:
                way = "raise strength or bound_rate, or train longer" if over > 0 else "train longer"
                if not self.learned:
                    way = "choose mode=bs"
                elif term.one_sided and over < 0:  # then the task's gradient alone moves bounds down
                    way = "a one-sided budget does not pull back: lower strength (0.4) and raise bound_rate (5)"
                self.say(f"warning: {term.budget + over:.1%} is left where {term.budget:.1%} was asked for: {way}")

    def _tell_of_limits(self, gone: Tensor) -> None:
        """Say which layers lose another share than their limits name, which are on the bounds: `gone` [layers]."""
        low, high = (1 - remaining(bound) for bound in self.range)
        for name, share, least, most in zip(self.weights, *(t.tolist() for t in (gone, low, high)), strict=True):
            if self.settings.limits and not least - 0.01 <= share <= most + 0.01:
                self.say(
                    f"warning: {layer_of(name)} loses {share:.1%}, beside its limits of {least:.1%} to {most:.1%}: "
                    "these are on its bound, and its weights are not Gaussian"
                )

    def numbers(self, run: Run) -> dict[str, float]:
        sparse = self._sparse()
        left = self._left(sparse)
        gone, sums = (self.sizes - left).tolist(), run.sums()
        told = {
            "sparsity": 1 - (1 - sums["sparsity"]) * (1 - sum(gone) / sums["params"]),
            "macs": sums["macs"] - sum(n * run.cost.positions[w] for n, w in zip(gone, self.weights, strict=True)),
            "params": sums["params"] - sum(gone),
            "density": float(left.sum() / self.sizes.sum()),
        }
        if self.learned:
            told["penalty"] = self._penalty(sparse)
        layers = [layer_of(name) for name in self.weights]
        told |= {f"bound/{layer}": bound for layer, bound in zip(layers, self.bounds.tolist(), strict=True)}
        return told | {f"sparsity/{la}": s for la, s in zip(layers, (1 - left / self.sizes).tolist(), strict=True)}

    def status(self, run: Run) -> str:
        return self.told

    def _sparse(self) -> list[Tensor]:
        """W~ of every layer; moves W to mean zero, and in mode `bs` the bounds to where they cut the share."""
        dense = [w.data for w in self.parameters]
        means = torch.stack([w.sum() for w in dense]) / self.sizes
        if self.state.centre:
            torch._foreach_sub_(dense, list(means))
            means = torch.zeros_like(means)
            for weight, mask in zip(dense, self.masks, strict=True):
                if mask is not None:
                    weight.mul_(mask)
        if self.settings.mode == "bs":
            return self._searched(dense)
        squares = torch.stack(torch._foreach_norm(dense)).square() - self.sizes * means.square()
        self.sigma = (squares / (self.sizes - 1).clamp_min(1)).clamp_min(0).sqrt()
        self.threshold = self.bounds * self.sigma + 1e-6
        return [hardshrink(w, t) for w, t in zip(dense, self.threshold.tolist(), strict=True)]

    def _searched(self, dense: list[Tensor]) -> list[Tensor]:
        """W~ by the bounds of the last step and, where they no longer cut the share, by those that a search finds."""
        sparse = [hardshrink(w, t) for w, t in zip(dense, self.bounds.tolist(), strict=True)]
        zeros = (1 - self._left(sparse) / self.sizes).tolist()
        for i, share in enumerate(self.shares):
            if abs(zeros[i] - share) >= TOLERANCE:
                mask = self.masks[i]
                self.bounds[i] = search((dense[i] if mask is None else dense[i][mask.bool()]).abs(), share)
                sparse[i] = hardshrink(dense[i], float(self.bounds[i]))
        return sparse

    def _hide(self, sparse: list[Tensor]) -> None:
        """Let the network see W~."""
        self.dense = [w.data for w in self.parameters]
        for weight, seen in zip(self.parameters, sparse, strict=True):
            weight.data = seen

    def _restore(self) -> list[Tensor]:
        """Let the network see W again, and return W~."""
        sparse = [w.data for w in self.parameters]
        for weight, dense in zip(self.parameters, self.dense, strict=True):
            weight.data = dense
        return sparse

    def _slope(self, sparse: list[Tensor], gradients: list[Tensor]) -> Tensor:
        """The gradient of loss and sparsity loss by the bounds, [layers]; sigma counts as a constant."""
        densities = self._densities(sparse)
        slope = torch.stack([term.gradient(self.bounds, densities) for term in self.terms]).sum(0)
        if not self.settings.ste:  # then T' is 0 where W~ differs from W
            return slope
        moved = torch._foreach_sub(sparse, self.dense)
        torch._foreach_mul_(moved, gradients)
        return slope + torch.stack([m.sum() for m in moved]) * self.sigma / self.threshold

    def _move(self, run: Run, slope: Tensor) -> None:
        group = run.optimizer.param_groups[0]
        self.velocity.mul_(group.get("momentum", 0.9)).add_(slope)
        self.bounds.sub_(self.velocity, alpha=group["lr"] * self.settings.bound_rate)
        torch.clamp(self.bounds, *self.range, out=self.bounds)

    def _left(self, sparse: list[Tensor]) -> Tensor:
        """How many weights of each layer remain, [layers]."""
        return torch.stack([w.count_nonzero() for w in sparse])

    def _densities(self, sparse: list[Tensor]) -> Tensor:
        """The share of each layer that remains, as the sparsity loss sees it, [layers]."""
        gaussian = self.settings.density == "gaussian"
        return remaining(self.bounds) if gaussian else self._left(sparse) / self.sizes

    def _penalty(self, sparse: list[Tensor]) -> float:
        densities = self._densities(sparse)
        return float(sum(term.value(densities) for term in self.terms))

    def _refuse_empty(self) -> None:
        """Raise `TargetError` for a layer so far from Gaussian that nothing of it is above the bound."""
        for name, weight, bound in zip(self.weights, self.parameters, self.bounds.tolist(), strict=True):
            values = weight.detach()
            if not ((values - values.mean()).abs() > bound * values.std()).any():
                raise TargetError(
                    f"{layer_of(name)}: no weight is above {bound:.2f} standard deviations: they are not Gaussian",
                    "choose --method-arg mode=bs, or begin with a trained network",
                )

    def _kept(self, kind: str, start: Tensor) -> Tensor:
        """`start` [layers], or what was saved of it; `tensors` has its elements as views and follows what it does."""
        if saved := self.tensors.get(kind):
            if saved.keys() != self.weights.keys() or any(t.numel() != 1 for t in saved.values()):
                raise DamagedError(f"training: {kind} is not one number for each layer", "the sidecar was changed")
            start = torch.stack([saved[name].reshape(()) for name in self.weights]).to(start)
        self.tensors[kind] = dict(zip(self.weights, start.unbind(), strict=True))
        return start
