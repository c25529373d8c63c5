"""Why layers are tied: which operations joined the weights that make the same units, read from the finished ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunecli.surgery.ledger import FIXED, Ledger
from prunecli.surgery.structure import Group, Structure, layer_of


@dataclass(frozen=True)
class Join:
    """An operation that joined layers whose units were apart until then.

    `layer` is the module that ran it, "" for the network itself; `joined` has one layer of each part that it brought
    together, the last one called of each.
    """

    operation: str
    layer: str
    joined: tuple[str, ...]


@dataclass
class Bundle:
    """Groups that are tied, and what tied their layers, in order.

    A prunable group is alone; groups that cannot be cut are together where they would be one group if they could.
    """

    groups: list[Group]
    joins: list[Join] = field(default_factory=list)

    @property
    def layers(self) -> list[str]:
        """The layers whose outputs are tied."""
        return list(dict.fromkeys(layer for group in self.groups for layer in group.layers))


def bundles(structure: Structure) -> list[Bundle]:
    """The groups of a network, and why their layers are tied, in the order of their first layers."""
    result: list[Bundle] = []
    where: dict[int, Bundle] = {}  # by component of slices that cannot be cut
    for group in structure.groups:
        roots = {*structure.parts.root[_nodes(structure, group)].tolist()} if not group.prunable else set()
        bundle = next((where[root] for root in sorted(roots & where.keys())), None)
        if bundle is None:
            bundle = Bundle([])
            result.append(bundle)
        bundle.groups.append(group)
        where.update(dict.fromkeys(roots, bundle))
    _join(structure, result)
    return result


def _nodes(structure: Structure, group: Group) -> Tensor:
    return torch.cat([structure.ledger.axes[axis] for axis in group.outputs])


def _join(structure: Structure, found: list[Bundle]) -> None:
    """Go through all ties in order, and note those after which fewer weights of a bundle are apart than before."""
    root = structure.parts.root
    place = torch.full_like(root, -1)  # of a node: its bundle
    for number, bundle in enumerate(found):
        for group in bundle.groups:
            place[root[_nodes(structure, group)]] = number
    place = place[root]
    place[FIXED] = -1
    axes, owner = list(structure.ledger.axes), _owners(structure.ledger, len(root))
    rank = {layer: i for i, layer in enumerate(structure.order)}
    makes = {axis for bundle in found for group in bundle.groups for axis in group.outputs}
    parts: dict[tuple[int, int], _Part] = {}  # by bundle and axis; an axis can have slices of several bundles
    for first, second, why in structure.ledger._ties:
        joined: dict[int, dict[str, None]] = {}
        for number, *sides in _pairs(place, owner, first, second):
            for side in sides:
                makers = [layer_of(axes[side][0])] if side < len(axes) and axes[side] in makes else []
                parts.setdefault((number, side), _Part(makers))
            one, other = (parts[number, side].top() for side in sides)
            if one is not other and one.makers and other.makers:
                last = (max(part.makers, key=rank.__getitem__) for part in (one, other))
                joined.setdefault(number, {}).update(dict.fromkeys(last))
            one.take(other)
        for number, layers in joined.items():
            operation, _, layer = why.partition(" in ")
            layer = "" if layer.startswith("the network itself") else layer.partition(" ")[0]
            found[number].joins.append(Join(operation, layer, tuple(sorted(layers, key=rank.__getitem__))))


def _owners(ledger: Ledger, size: int) -> Tensor:
    """The number of the axis that each node is on; nodes on none have numbers of their own."""
    owner = torch.arange(size) + len(ledger.axes)
    for number, nodes in enumerate(ledger.axes.values()):
        owner[nodes] = number
    return owner


def _pairs(place: Tensor, owner: Tensor, first: Tensor, second: Tensor) -> Iterator[tuple[int, int, int]]:
    """Bundle and two different axes of it that a tie joins, each once."""
    tied = (place[first] == place[second]) & (place[first] >= 0) & (owner[first] != owner[second])
    rows = torch.stack([place[first[tied]], owner[first[tied]], owner[second[tied]]], 1)
    yield from dict.fromkeys((number, one, other) for number, one, other in rows.tolist())


class _Part:
    """Axes that are tied so far: `makers` are the layers among them whose weights make the units."""

    def __init__(self, makers: list[str]) -> None:
        self.makers = makers
        self._into: _Part | None = None

    def top(self) -> _Part:
        """The part that this one has become part of."""
        part = self
        while part._into:
            part = part._into
        return part

    def take(self, other: _Part) -> None:
        """Let `other` become part of this one."""
        if other is not self:
            self.makers = self.makers + other.makers
            other._into = self
