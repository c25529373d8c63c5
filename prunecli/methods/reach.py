"""From scores and a target to the widths of groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from prunecli import measure
from prunecli.allocate import widths
from prunecli.allocate.counts import keep_at_least
from prunecli.allocate.patterns import share_of
from prunecli.errors import TargetError
from prunecli.methods import METHODS
from prunecli.methods.targets import Target, Units
from prunecli.sidecar import Cost
from prunecli.surgery import Group, Plan, Structure


@dataclass(frozen=True)
class Candidates:
    """What a target is reached with, by group: scores a unit, the size that shares are of, widths that it may have."""

    groups: Mapping[str, Group]
    scores: widths.Scores
    sizes: Mapping[str, int]
    choices: widths.Choices

    def plan(self, kept: Mapping[str, int]) -> Plan:
        """The plan that leaves the best units, as many as `kept` says."""
        scores = self.scores
        return Plan({key: widths.select(scores[key], n) for key, n in kept.items() if n < len(scores[key])})


def candidates(
    groups: Mapping[str, Group], scores: widths.Scores, how: Units, whole: Mapping[str, int] | None
) -> Candidates:
    """The groups that have scores; `whole` holds their sizes before the first of several rounds.

    Scores of what is none of `groups` are those of a group that is down to one unit. Where several units of a group
    have to stay, they rank above all others.
    """
    sizes = {key: (whole or {}).get(key, len(values)) for key, values in scores.items()}
    needed = {key: group.needed(scores[key]) for key, group in groups.items() if key in scores}
    ranked = dict(scores) | {key: _raised(scores[key], units) for key, units in needed.items() if len(units) > 1}
    choices = {key: _allowed(ranked[key], groups[key], how, sizes[key], len(units)) for key, units in needed.items()}
    return Candidates(groups, ranked, sizes, {key: choices.get(key, [1]) for key in scores})


def _raised(scores: Sequence[float], units: Sequence[int]) -> list[float]:
    return [math.inf if unit in units else score for unit, score in enumerate(scores)]


def _allowed(scores: Sequence[float], group: Group, how: Units, size: int, needed: int) -> list[int]:
    outputs = {*group.outputs}
    channels = {
        tuple(torch.bincount(member.unit[member.unit >= 0], minlength=group.units).tolist())
        for member in group.members
        if (member.tensor, member.axis) in outputs
    }
    return widths.allowed(scores, max(needed, keep_at_least(size, how.limit)), how.round_to, sorted(channels))


def reach(target: Target, found: Candidates, how: Units, structure: Structure, cost: Cost) -> widths.Allocation:
    """Widths that meet the target. Raises `TargetError` when none do."""
    return _within(target, found, how, structure, cost) if target.is_budget else _shares(target, found, how)


def _shares(target: Target, found: Candidates, how: Units) -> widths.Allocation:
    """Widths that remove the target's share: of each layer, by the table, or of all units."""
    rounding = METHODS[how.method].rounding
    if how.scope == "global" and target.share is not None:
        return widths.by_rank(found.scores, target.share, found.sizes, rounding, found.choices)
    shares = {
        key: (share_of(found.groups[key].layers, target.ratios) if target.ratios else target.share) or 0.0
        for key in found.scores
        if key in found.groups
    }
    return widths.by_share(found.scores, shares, found.sizes, rounding, found.choices)


def _within(target: Target, found: Candidates, how: Units, structure: Structure, cost: Cost) -> widths.Allocation:
    """Widths of the largest network within the target's budget."""

    def fits(kept: dict[str, int]) -> bool:
        sums = measure.totals(cost, structure.shapes(found.plan(kept)), {})
        return (target.macs is None or sums.macs <= target.macs) and (
            target.params is None or sums.params <= target.params
        )

    path = widths.path(found.scores, how.scope, found.choices)
    kept = widths.largest(path, found.scores, fits)
    if kept is None:
        least = measure.totals(cost, structure.shapes(found.plan(widths.after(path, found.scores))), {})
        asked = [f"--max-macs {target.macs:,.0f}"] if target.macs is not None else []
        asked += [f"--max-params {target.params:,.0f}"] if target.params is not None else []
        hint = "raise the budget, or " + (how.looser or "prune more layers")
        if target.macs is not None and cost.other_macs:
            hint += f"; {cost.other_macs:,} MACs of products of activations count as they are"
        raise TargetError(
            f"{' and '.join(asked)} cannot be met: the smallest network has {least.macs:,} MACs and "
            f"{least.params:,} parameters",
            hint,
        )
    return widths.Allocation(kept)
