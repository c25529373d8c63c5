"""Which groups of units a command may prune, and their scores."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from prunecli.allocate.patterns import matching, require_matches, share_of
from prunecli.allocate.widths import normalised
from prunecli.criteria import Criterion, Scorer, aligned
from prunecli.errors import TargetError, UsageError
from prunecli.methods.outcome import by_reason, left_alone, listed
from prunecli.surgery import Group, Structure
from prunecli.surgery.structure import layer_of


@dataclass(frozen=True)
class Wanted:
    """What the user said about layers: patterns to prune only, to skip, to skip the inputs of; shares by pattern."""

    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    skip_inputs: Sequence[str] = ()
    ratios: dict[str, float] = field(default_factory=dict)

    def check(self, layers: Sequence[str]) -> None:
        """Raise `UsageError` if a pattern names none of `layers`."""
        for flag, patterns in (
            ("--only", self.only),
            ("--skip", self.skip),
            ("--skip-inputs", self.skip_inputs),
            ("--ratios", self.ratios),
        ):
            require_matches(patterns, layers, flag)

    def leaves(self, what: str) -> str:
        """That nothing is left, for a message: `--skip '*' leaves no layer`."""
        given = [(flag, p) for flag, patterns in (("--only", self.only), ("--skip", self.skip)) for p in patterns]
        text = " ".join(f"{flag} {shlex.quote(pattern)}" for flag, pattern in given)
        return f"{text} leaves {what}" if given else f"there is {what}"

    def named(self, layers: Sequence[str]) -> list[str]:
        """The layers that were named to be pruned."""
        return [layer for layer in matching([*self.only, *self.ratios], layers) if layer not in self._skipped(layers)]

    def in_scope(self, layers: Sequence[str]) -> list[str]:
        """The layers that were meant to be pruned: those that were named or, where none was, all but the skipped."""
        if self.only or self.ratios:
            return self.named(layers)
        return [layer for layer in layers if layer not in self._skipped(layers)]

    def why_not(self, layers: Sequence[str], along: Sequence[str] = (), readers: Sequence[str] = ()) -> str | None:
        """Why `layers`, which can only be pruned together, are not to be; None where they are.

        `along` are depthwise convolutions, which hand these units on, and `readers` the layers that consume them.
        """
        if skipped := self._skipped([*layers, *along]):
            return f"{skipped[0]} is to be skipped"
        if kept := matching(self.skip_inputs, readers):
            return f"the inputs of {kept[0]} are to be skipped"
        for patterns in (self.only, list(self.ratios)):
            if patterns and (others := [la for la in layers if la not in matching(patterns, layers)]):
                return f"its units are also those of {listed(others)}, not named"
        if self.ratios and share_of(layers, self.ratios) is None:
            return f"{listed(layers)} have the same units and were given different shares"
        return None

    def _skipped(self, layers: Sequence[str]) -> list[str]:
        return matching(self.skip, layers)


@dataclass(frozen=True)
class Choice:
    """The groups to prune by key, and why the other groups, and layers in scope, stay as they are."""

    groups: dict[str, Group]
    why: dict[str, str]
    unpruned: dict[str, str]


def choose(structure: Structure, wanted: Wanted, *, first: bool = True) -> Choice:
    """The prunable groups that the user wants pruned.

    A group of several layers (a residual stage) is pruned where all of them are named, with one share, and none is to
    be skipped. In the `first` of several rounds, raises `UsageError` for a pattern that names no layer and
    `TargetError` when there is nothing to prune; in later ones layers may be down to one unit.
    """
    along = {g.key: handed_on(structure, g) for g in structure.groups}
    why = _single(structure) | structure.frozen
    layers = [*dict.fromkeys([*structure.order, *why, *(la for names in along.values() for la in names)])]
    if first:
        wanted.check(layers)
    choice = Choice({}, {}, {})
    for group in structure.groups:
        reason = group.reason or wanted.why_not(group.layers, along[group.key], readers(structure, group))
        if reason is None:
            choice.groups[group.key] = group
        else:
            choice.why[group.key] = reason
            why |= dict.fromkeys([*group.layers, *along[group.key]], reason)
    cut = {layer for group in choice.groups.values() for layer in group.layers}
    choice.unpruned.update({la: why[la] for la in wanted.in_scope(layers) if la in why and la not in cut})
    if not choice.groups and first:
        possible = [group.key for group in structure.groups if group.prunable]
        notes = left_alone(choice.unpruned, wanted.named(layers))
        notes += [f"{listed(names)} ({reason})" for reason, names in by_reason(choice.unpruned).items()]
        notes += [wanted.leaves("no layer")]
        raise TargetError(
            ": ".join(["nothing to prune", *notes[:1]]),
            f"prunable are {listed(possible)}" if possible else "mask weights instead: --method magnitude",
        )
    return choice


def _single(structure: Structure) -> dict[str, str]:
    """Layers with one channel, which make no group."""
    weights = {layer_of(tensor): shape for tensor, shape in structure.dense.items() if tensor.endswith(".weight")}
    single = (layer for layer, shape in weights.items() if len(shape) > 1 and shape[0] == 1)
    return {layer: "its output is a single channel" for layer in single if layer not in structure.order}


def require_heads(whole: Structure, narrower: Structure) -> None:
    """Raise `UsageError` unless `whole`, a trace with whole heads, can cut any: groups other than without them."""
    before = {key: group.units for key, group in narrower.by_key.items()}
    unlike = [group for group in whole.groups if group.units != before.get(group.key)]
    if not any(group.prunable for group in unlike):
        why = next((f": {group.layers[0]} ({group.reason})" for group in unlike), "")
        raise UsageError(f"--heads: this network has no heads that can be cut whole{why}", "drop --heads")


def handed_on(structure: Structure, group: Group) -> list[str]:
    """Depthwise convolutions that hand the units of `group` on."""
    found = (layer_of(member.tensor) for member in group.members if member.role == "other")
    return [la for la in dict.fromkeys(found) if structure.whole_groups.get(la) and la not in group.layers]


def readers(structure: Structure, group: Group) -> list[str]:
    """The layers that consume the units of `group`; a convolution that loses whole groups reads what it writes."""
    found = ((layer_of(member.tensor), member.role) for member in group.members)
    return [*dict.fromkeys(layer for layer, role in found if role == "in" or structure.whole_groups.get(layer))]


def score(network: nn.Module, group: Group, criterion: Criterion, scorer: Scorer, ranked: bool) -> list[float] | None:
    """One score a unit of `group`, or None where the criterion has nothing to read for some unit (no batch norm).

    Where several layers make a unit, its score is the mean of the scores that they give it. Where scores of different
    layers will be `ranked` together, and the criterion does not make them comparable, each layer's are first divided by
    their mean.
    """
    if criterion.reads == "unit":
        return scorer(torch.zeros(group.units, 0)).tolist()
    total, readings = torch.zeros(group.units, dtype=torch.float64), torch.zeros(group.units)
    for member in group.members:
        if member.role != criterion.reads or not _is_read(member.tensor, group, criterion, network):
            continue
        units, slices = aligned(network.get_parameter(member.tensor), member.axis, member.unit)
        scores = scorer(slices).tolist()
        if ranked and not criterion.comparable:
            scores = normalised(scores)
        total[units] += torch.tensor(scores, dtype=torch.float64)
        readings[units] += 1
    if not bool(readings.all()):
        return None
    return (total / readings).tolist()


def _is_read(tensor: str, group: Group, criterion: Criterion, network: nn.Module) -> bool:
    layer, _, name = tensor.rpartition(".")
    if criterion.reads == "out":
        return tensor in group.producers and name in network.get_submodule(layer)._parameters
    return name == "weight" and isinstance(network.get_submodule(layer), nn.modules.batchnorm._BatchNorm)
