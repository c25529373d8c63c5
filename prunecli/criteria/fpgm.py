"""Geometric median: He et al., Filter Pruning via Geometric Median (2019), equation 5."""

from __future__ import annotations

import torch
from torch import Tensor


def fpgm(slices: Tensor) -> Tensor:
    """Sum of Euclidean distances to the other filters of the layer, [units, elements] -> [units].

    A filter near the geometric median has a small sum: the others can stand in for it.
    """
    # Distances through a matrix product are fast, and cancel digits: double precision has them to spare.
    slices = slices.double()
    return torch.cdist(slices, slices, compute_mode="use_mm_for_euclid_dist").sum(1)
