"""How many of n survive: each method has its own rounding, a constant of the method; rounds have their targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

Rounding = Callable[[int, float], int]
RoundSchedule = Literal["linear", "geometric"]

GUARD = 1e-9  # 10 * (1 - 0.9) evaluates to 0.999...


def keep_floor(n: int, share: float) -> int:
    """Kept count floor(n (1 - share)): Li et al."""
    return math.floor(n * (1 - share) + GUARD)


def prune_floor(n: int, share: float) -> int:
    """Kept count n - floor(n share): FPGM, Network Slimming, magnitude pruning."""
    return n - math.floor(n * share + GUARD)


def prune_ceil(n: int, share: float) -> int:
    """Kept count n - min(ceil(n share), n - 1): GReg."""
    return max(1, n - math.ceil(n * share - GUARD))


def keep_at_least(n: int, limit: float | None) -> int:
    """What a layer of `n` keeps when at most the share `limit` of it may go, and never none."""
    return max(1, n - math.floor(n * limit + GUARD)) if limit is not None else 1


def apportion(count: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """`count` split in proportion to `sizes`, exactly: what rounding down leaves goes to the largest remainders."""
    whole = sum(sizes.values())
    parts = {name: count * size // whole for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: count * sizes[name] % whole, reverse=True)
    for name in by_remainder[: count - sum(parts.values())]:
        parts[name] += 1
    return parts


def round_shares(share: float, rounds: int, schedule: RoundSchedule) -> list[float]:
    """The target after each round: linear T/R ... T; geometric 1 - (1 - T)^(i/R), equal shares of survivors."""
    if schedule == "linear":
        return [share * i / rounds for i in range(1, rounds)] + [share]
    return [1 - (1 - share) ** (i / rounds) for i in range(1, rounds)] + [share]
