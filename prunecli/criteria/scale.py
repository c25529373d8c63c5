"""Batch-norm scale: Liu et al., Learning Efficient Convolutional Networks through Network Slimming (2017)."""

from __future__ import annotations

from torch import Tensor


def bn_scale(gamma: Tensor) -> Tensor:
    """|gamma| of the batch norm behind a filter, [units, elements] -> [units] (an element a place of the unit)."""
    return gamma.abs().mean(1)
