"""Weight magnitude: Han et al., Learning both Weights and Connections (2015)."""

from __future__ import annotations

from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """|w|, one score a weight, in the weight's shape."""
    return weight.abs()
