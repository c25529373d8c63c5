"""The mathematics of adaptive sparsity: how a bound and a layer's share of zeros follow from each other.

Retsinas et al. 2020, *Weight Pruning via Adaptive Sparsity Loss*. Bounds b are in units of a layer's standard
deviation, as in equations 14 to 18; weights are taken to be Gaussian of mean zero, so that erf(b / sqrt 2) of them lie
below b sigma.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

LARGEST = 5.0  # bound, which leaves a Gaussian layer one weight in 1.7 million
TOLERANCE = 1e-3  # of the share that a binary search meets; the paper gives none


def bound_at(share: float) -> float:
    """The bound below which `share` of a Gaussian layer lies: sqrt 2 erfinv(share), at most 5."""
    return min(NormalDist().inv_cdf((1 + min(share, 1 - 1e-9)) / 2), LARGEST)


def search(magnitudes: Tensor, share: float) -> float:
    """The bound b in weight units with | share of `magnitudes` below b - `share` | < 1e-3, by bisection.

    Of equal magnitudes all or none are below; then b is next to the value that stands in the way.
    """
    low, high = 0.0, float(magnitudes.max())
    bound = high / 2
    for _ in range(50):
        gap = float((magnitudes <= bound).float().mean()) - share
        if abs(gap) < TOLERANCE:
            break
        low, high = (bound, high) if gap < 0 else (low, bound)
        bound = (low + high) / 2
    return bound


def remaining(bounds: Tensor) -> Tensor:
    """The shares of Gaussian layers above `bounds`, [layers]."""
    return torch.erfc(bounds / math.sqrt(2))


@dataclass(frozen=True)
class Term:
    """A term of the sparsity loss, with the density D = rest + sum of c_i d_i over layers of which d_i remains.

    Without a budget B it is strength * D; with one strength * (D - B)^2 or, one-sided, strength * max(D - B, 0).
    """

    coefficients: Tensor  # c [layers]
    strength: float  # lambda
    rest: float = 0.0  # share of what no bound reaches
    budget: float | None = None  # share that may remain
    one_sided: bool = False

    def value(self, densities: Tensor) -> Tensor:
        """The term, a scalar, where `densities` [layers] remain."""
        if self.budget is None:
            return self.strength * (self.rest + self.coefficients @ densities)
        over = self.over(densities)
        return self.strength * (over.clamp_min(0) if self.one_sided else over.square())

    def gradient(self, bounds: Tensor, densities: Tensor) -> Tensor:
        """Its derivative by each bound, [layers]: dD/db_i = -c_i sqrt(2 / pi) exp(-b_i^2 / 2), equation 18."""
        slope = self.coefficients * (-math.sqrt(2 / math.pi) * self.strength) * torch.exp(bounds.square() / -2)
        if self.budget is None:
            return slope
        over = self.over(densities)
        return slope * (over > 0 if self.one_sided else 2 * over)

    def over(self, densities: Tensor) -> Tensor:
        """How much more remains than the budget."""
        return self.rest + self.coefficients @ densities - (self.budget or 0.0)

    @property
    def share(self) -> float | None:
        """The share of the bounded weights (of their cost) that has to go; None without a budget."""
        if self.budget is None:
            return None
        return max(1 - (self.budget - self.rest) / float(self.coefficients.sum()), 0.0)
