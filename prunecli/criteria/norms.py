"""Norms of filters: Li et al., Pruning Filters for Efficient ConvNets (2017)."""

from __future__ import annotations

from torch import Tensor


def l1(slices: Tensor) -> Tensor:
    """Sum of absolute weights, [units, elements] -> [units]."""
    return slices.abs().sum(1)


def l2(slices: Tensor) -> Tensor:
    """Euclidean norm, [units, elements] -> [units]."""
    return slices.square().sum(1).sqrt()
