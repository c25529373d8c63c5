"""The learning rate as a pure function of the position in a run.

A pure function needs no state: an interrupted run, a rewound one and a stretched one (Scratch-B) all compute the same
rate from the same position. Warm-up is linear in steps; the other schedules change at the epochs they name, and
cosine in steps (Loshchilov & Hutter 2017, with `period` for warm restarts).
"""

from __future__ import annotations

import math
from typing import assert_never

from prunecli.sidecar import Schedule


def factor(schedule: Schedule, epochs: int, position: float) -> float:
    """The factor of the base rate at `position` (in epochs, fractions allowed) of a run of `epochs`."""
    if position < schedule.warmup:
        return max(position, 1e-3) / schedule.warmup * _after_warmup(schedule, epochs, schedule.warmup)
    return _after_warmup(schedule, epochs, position)


def _after_warmup(schedule: Schedule, epochs: int, position: float) -> float:
    whole = math.floor(position + 1e-9)  # guards 3.9999999 from a division of steps
    match schedule.kind:
        case "constant":
            return 1.0
        case "step":
            return float(schedule.gamma ** math.floor(whole / (schedule.step_size or math.inf)))
        case "multistep":
            return float(schedule.gamma ** sum(whole >= milestone for milestone in schedule.milestones))
        case "exponential":
            return float(schedule.gamma**whole)
        case "cosine":
            period = schedule.period or max(epochs - schedule.warmup, 1)
            since = position - schedule.warmup
            if not schedule.period and since >= period:  # the end itself, not a restart
                return schedule.min_factor
            phase = math.cos(math.pi * (since % period) / period)
            return schedule.min_factor + (1 - schedule.min_factor) * (1 + phase) / 2
        case unknown:
            assert_never(unknown)


def stretched(schedule: Schedule, ratio: float) -> Schedule:
    """The same curve over a run `ratio` times as long: every length in epochs scales, a rate per epoch is rooted."""
    return Schedule(
        kind=schedule.kind,
        milestones=[m * ratio for m in schedule.milestones],
        step_size=schedule.step_size and schedule.step_size * ratio,
        gamma=schedule.gamma ** (1 / ratio) if schedule.kind == "exponential" else schedule.gamma,
        period=schedule.period and schedule.period * ratio,
        min_factor=schedule.min_factor,
        warmup=schedule.warmup * ratio,
    )
