"""Criteria of gradients over batches j, of Progressive Gradient Pruning: what every batch adds.

GN_G = |sum_j g_j|_1, GN_S = sum_j |g_j|_1, TW = |sum_j sum W g_j| with the sign until the end, and for an activation z
before batch normalisation Taylor = |sum_j mean(relu(z) dL/dz)|. The first three add up in the weights' shapes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def add_gradients(sums: list[Tensor], weights: list[Tensor], gradients: list[Tensor]) -> None:
    """GN_G: sums += g."""
    torch._foreach_add_(sums, gradients)


def add_magnitudes(sums: list[Tensor], weights: list[Tensor], gradients: list[Tensor]) -> None:
    """GN_S: sums += |g|."""
    torch._foreach_add_(sums, torch._foreach_abs(gradients))


def add_products(sums: list[Tensor], weights: list[Tensor], gradients: list[Tensor]) -> None:
    """TW: sums += W g."""
    torch._foreach_addcmul_(sums, weights, gradients)


def taylor(activation: Tensor, gradient: Tensor, axis: int) -> Tensor:
    """The mean of relu(z) dL/dz over all but the channels, which are on `axis`, float32 [channels]."""
    products = activation.relu().float() * gradient.float()
    return products.movedim(axis, 0).flatten(1).mean(1)


def signed(slices: Tensor) -> Tensor:
    """|sum|, [units, elements] -> [units]."""
    return slices.sum(1).abs()
