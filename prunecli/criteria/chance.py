"""Random scores: the baseline that every criterion has to beat."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def random_units(slices: Tensor, generator: Generator) -> Tensor:
    """Uniform scores in [0, 1), [units, elements] -> [units]; equal on every device for a CPU generator."""
    return torch.rand(slices.shape[0], generator=generator).to(slices.device)


def random_weights(weight: Tensor, generator: Generator) -> Tensor:
    """Uniform scores in [0, 1), one a weight, in the weight's shape."""
    return torch.rand(weight.shape, generator=generator).to(weight.device)
