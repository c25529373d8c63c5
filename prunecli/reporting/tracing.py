"""The outline of a network, from a trace of it; the one part of a report that needs torch besides latency."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import nn

from prunecli.measure import Totals
from prunecli.reporting.structure import Line, Member, Outline, Tied
from prunecli.sidecar import Surgery
from prunecli.surgery import Plan, Structure, trace
from prunecli.surgery.grouping import never_called
from prunecli.surgery.reasons import Bundle, bundles
from prunecli.surgery.structure import layer_of


def outline(
    network: nn.Module, shape: Sequence[int], sums: Totals, *, heads: bool = False, record: Surgery | None = None
) -> Outline:
    """Trace `network`, cut by `record`, on inputs of `shape` (without the batch); `heads` is for plans of whole heads.

    Raises `UsageError` where it does not run on them.
    """
    structure = trace(network, torch.zeros(2, *shape), heads=heads, record=record)  # two, for batch norms in train mode
    kinds = {layer.name: layer.kind for layer in sums.layers if layer.kind != "other" and layer.params}
    widths = {layer.name: layer.shape[0] for layer in sums.layers} | structure.widths(Plan())
    lines = tuple(Line(name, kinds.get(name, ""), widths[name]) for name in _merged([*kinds], structure.order))
    groups = tuple(_tied(structure, bundle, kinds) for bundle in bundles(structure))
    idle = never_called(network, structure.ledger)
    named = {layer for group in groups for layer in group.layers} | idle.keys()
    single = tuple(_single(line.name, structure) for line in lines if line.name in structure.frozen.keys() - named)
    absent = tuple(layer.name for layer in sums.layers if layer.kind != "other" and not layer.params)
    return Outline(lines, (*groups, *single), tuple(idle), absent)


def _merged(called: list[str], makers: list[str]) -> list[str]:
    """All layers in call order: those of `makers` that `called` lacks (embeddings) come before the next that it has."""
    result = list(called)
    after = len(result)
    for name in reversed(makers):
        if name in called:
            after = result.index(name)
        else:
            result.insert(after, name)
    return result


def _tied(structure: Structure, bundle: Bundle, computing: Collection[str]) -> Tied:
    first, members = bundle.groups[0], _members(structure, bundle)
    readers, others = (dict.fromkeys(layer_of(m.tensor) for m in members if m.role == role) for role in ("in", "other"))
    return Tied(
        key=first.key,
        units=first.units,
        layers=tuple(bundle.layers),
        readers=tuple(readers),
        carriers=tuple(name for name in others if name in computing and name not in (*bundle.layers, *readers)),
        joins=tuple(bundle.joins),
        members=members,
        reason=first.reason,
        changes_function=first.changes_function,
    )


def _single(layer: str, structure: Structure) -> Tied:
    """A layer that makes too few channels for a group of its own."""
    return Tied(
        key=layer,
        units=0,
        layers=(layer,),
        readers=(),
        carriers=(),
        joins=(),
        members=(),
        reason=structure.frozen[layer],
        changes_function=None,
    )


def _members(structure: Structure, bundle: Bundle) -> tuple[Member, ...]:
    """Axes with slices of a bundle, and their roles; where it cannot be cut, those that are tied to it."""
    first = bundle.groups[0]
    if first.prunable:
        return tuple(Member(m.tensor, m.axis, m.role, int((m.unit >= 0).sum())) for m in first.members)
    root, axes, roles = structure.parts.root, structure.ledger.axes, structure.ledger.roles
    own = torch.cat([root[axes[axis]] for group in bundle.groups for axis in group.outputs])
    tied = {axis: int(torch.isin(root[nodes], own).sum()) for axis, nodes in axes.items()}
    return tuple(Member(*axis, roles.get(axis, "other"), slices) for axis, slices in tied.items() if slices)
