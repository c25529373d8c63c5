"""What a command is asked to reach and how, and how several rounds share it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from prunecli.allocate.counts import RoundSchedule, round_shares
from prunecli.allocate.widths import Scope


@dataclass(frozen=True)
class Target:
    """One of: a share to remove of everything, shares by layer pattern, a budget (MACs, parameters, or both)."""

    share: float | None = None
    ratios: dict[str, float] = field(default_factory=dict)
    macs: float | None = None
    params: float | None = None

    @property
    def is_budget(self) -> bool:
        """Does it say what may be left, rather than what is to go?"""
        return self.macs is not None or self.params is not None

    @property
    def is_share(self) -> bool:
        """Does it say that something is to go?"""
        return max(self.share or 0.0, *self.ratios.values(), 0.0) > 0


@dataclass(frozen=True)
class Units:
    """How units are chosen: a method in `METHODS`, where scores are ranked, which widths layers may have, which layers.

    `round_to`: channels that a layer keeps a multiple of; `limit`: the largest share that a layer may lose; `heads`:
    attention loses whole heads; `fold`: take removed units that are constant into the layers that read them.
    """

    method: str
    scope: Scope
    round_to: int = 1
    limit: float | None = None
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    skip_inputs: Sequence[str] = ()
    heads: bool = False
    fold: bool = False
    seed: int = 0

    @property
    def limits(self) -> str:
        """What keeps layers from some widths, in words."""
        limits = [f"--round-to {self.round_to}"] * (self.round_to > 1)
        limits += [] if self.limit is None else [f"--max-layer-sparsity {self.limit:g}"]
        return " with ".join(limits) or "one unit a layer"

    @property
    def looser(self) -> str:
        """How to allow more widths, in words; empty where no option forbids any."""
        ways = ["lower --round-to"] * (self.round_to > 1) + ["raise --max-layer-sparsity"] * (self.limit is not None)
        return " or ".join(ways)


def in_rounds(target: Target, rounds: int, schedule: RoundSchedule, macs: float, params: float) -> list[Target]:
    """The targets of `rounds` rounds, the last one `target` itself.

    `macs` and `params` are what there is before the first round: a budget is approached from there.
    """

    def partway(share: float | None, i: int) -> float | None:
        return None if share is None else round_shares(share, rounds, schedule)[i]

    def shrunk(budget: float | None, whole: float, i: int) -> float | None:
        return None if budget is None else whole * (1 - round_shares(max(0.0, 1 - budget / whole), rounds, schedule)[i])

    return [
        Target(
            partway(target.share, i),
            {pattern: round_shares(share, rounds, schedule)[i] for pattern, share in target.ratios.items()},
            shrunk(target.macs, macs, i),
            shrunk(target.params, params, i),
        )
        for i in range(rounds - 1)
    ] + [target]
