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


def round_up(width: int, whole: int, multiple: int) -> int:
    """The next multiple at or above `width`, so that rounding never takes more than was asked.

    At most `whole`, what the layer has; a layer with fewer than `multiple` units keeps its width.
    """
    return width if whole < multiple else min(whole, -(-width // multiple) * multiple)


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
