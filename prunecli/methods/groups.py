"""Which groups of units a command may prune, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from prunecli.allocate.patterns import matching, require_matches, share_of
from prunecli.allocate.widths import normalised
from prunecli.criteria import Criterion, Scorer, aligned
from prunecli.errors import TargetError
from prunecli.surgery import Group, Structure


@dataclass(frozen=True)
class Wanted:
    """What the user said about layers: patterns to prune only, patterns to skip, shares to remove by pattern."""

    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    ratios: dict[str, float] = field(default_factory=dict)

    def check(self, layers: Sequence[str]) -> None:
        """Raise `TargetError` if a pattern names none of `layers`."""
        for flag, patterns in (("--only", self.only), ("--skip", self.skip), ("--ratios", self.ratios)):
            require_matches(patterns, layers, flag)

    def named(self, layers: Sequence[str]) -> list[str]:
        """The layers that were named to be pruned."""
        skipped = matching(self.skip, layers)
        return [layer for layer in matching([*self.only, *self.ratios], layers) if layer not in skipped]

    def why_not(self, layers: Sequence[str]) -> str | None:
        """Why `layers`, which can only be pruned together, are not to be; None where they are."""
        if skipped := matching(self.skip, layers):
            return f"{skipped[0]} is to be skipped"
        for patterns in (self.only, list(self.ratios)):
            if patterns and (others := [la for la in layers if la not in matching(patterns, layers)]):
                return f"its units are also those of {_listed(others)}, not named"
        if self.ratios and share_of(layers, self.ratios) is None:
            return f"{_listed(layers)} have the same units and were given different shares"
        return None


@dataclass(frozen=True)
class Choice:
    """The groups to prune by key, and notes on the layers that were named and stay as they are."""

    groups: dict[str, Group]
    notes: list[str]


def choose(structure: Structure, wanted: Wanted) -> Choice:
    """The prunable groups that the user wants pruned.

    A group of several layers (a residual stage) is pruned where all of them are named, with one share, and none is to
    be skipped. Raises `TargetError` for a pattern that names no layer, and when nothing is left to prune.
    """
    wanted.check(structure.order)
    named = wanted.named(structure.order)
    choice = Choice({}, [])
    why = dict(structure.frozen)
    for group in structure.groups:
        reason = group.reason or wanted.why_not(group.layers)
        if reason is None:
            choice.groups[group.key] = group
        else:
            why |= dict.fromkeys(group.layers, reason)
    reasons: dict[str, list[str]] = {}
    for layer in named:
        if layer in why and not any(layer in group.layers for group in choice.groups.values()):
            reasons.setdefault(why[layer], []).append(layer)
    choice.notes.extend(f"{_listed(layers)} named but not pruned: {reason}" for reason, layers in reasons.items())
    if not choice.groups:
        possible = [group.key for group in structure.groups if group.prunable]
        raise TargetError(
            "nothing to prune" + (f": {choice.notes[0]}" if choice.notes else ""),
            f"prunable are {_listed(possible)}" if possible else "mask weights instead: --method magnitude",
        )
    return choice


def score(network: nn.Module, group: Group, criterion: Criterion, scorer: Scorer, ranked: bool) -> list[float] | None:
    """One score a unit of `group`, or None where the criterion has nothing to read for some unit (no batch norm).

    Where several layers make a unit, its score is the mean of the scores that they give it. Where scores of different
    layers will be `ranked` together, and the criterion does not make them comparable, each layer's are first divided by
    their mean.
    """
    if criterion.reads == "unit":
        return scorer(torch.zeros(group.units, 0)).tolist()
    tensors = dict(network.named_parameters())
    total, readings = torch.zeros(group.units, dtype=torch.float64), torch.zeros(group.units)
    for member in group.members:
        if member.role != criterion.reads or not _is_read(member.tensor, group, criterion, network):
            continue
        units, slices = aligned(tensors[member.tensor], member.axis, member.unit)
        scores = scorer(slices).tolist()
        if ranked and not criterion.comparable:
            scores = normalised(scores)
        total[units] += torch.tensor(scores, dtype=torch.float64)
        readings[units] += 1
    if not bool(readings.all()):
        return None
    return (total / readings).tolist()


def _is_read(tensor: str, group: Group, criterion: Criterion, network: nn.Module) -> bool:
    if criterion.reads == "out":
        return tensor in group.producers
    layer, _, name = tensor.rpartition(".")
    return name == "weight" and isinstance(network.get_submodule(layer), nn.modules.batchnorm._BatchNorm)


def _listed(layers: Sequence[str]) -> str:
    return ", ".join(layers[:6]) + (f" and {len(layers) - 6} more" if len(layers) > 6 else "")
