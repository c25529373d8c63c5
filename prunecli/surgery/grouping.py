"""From a finished ledger to the groups of a network."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from prunecli.surgery.ledger import FIXED, Axis, Components, Ledger
from prunecli.surgery.structure import Group, Member, Structure, layer_of
from prunecli.surgery.twin import own_tensors


def structure_of(network: nn.Module, ledger: Ledger, parts: Components) -> Structure:
    """Units are connected components; units on one output axis of a weight, and all tied to them, form a group."""
    outputs = [axis for axis, role in ledger.roles.items() if role == "out"]
    group_of = torch.full_like(parts.unit, -1)  # by representative node
    unit_of = torch.full_like(parts.unit, -1)
    clusters = _clusters(outputs, {axis: _units(parts, ledger.axes[axis]) for axis in outputs})
    for number, (_, units) in enumerate(clusters):
        group_of[units] = number
        unit_of[units] = torch.arange(len(units))
    members: list[list[Member]] = [[] for _ in clusters]
    sizes: list[list[Member]] = [[] for _ in clusters]
    for found, axes in ((members, ledger.axes), (sizes, ledger.sizes)):
        for axis, nodes in axes.items():
            roots = parts.unit[nodes]
            numbers = group_of[roots]
            its_groups = {*numbers.tolist()} - {-1}
            for number in sorted(its_groups):
                unit = unit_of[roots]
                if len(its_groups) > 1:
                    unit[numbers != number] = -1
                found[number].append(Member(*axis, unit, ledger.roles.get(axis, "other")))
    groups = _named([_group(*parts_of, ledger, parts) for parts_of in zip(clusters, members, sizes, strict=True)])
    prunable = {layer for group in groups if group.prunable for layer in group.layers}
    frozen = {
        layer: group.reason for group in groups if group.reason for layer in group.layers if layer not in prunable
    }
    tensors, saved = own_tensors(network), network.state_dict(keep_vars=True)
    return Structure(
        groups=groups,
        frozen=frozen | _single(ledger) | never_called(network, ledger),
        order=list(dict.fromkeys(layer_of(tensor) for tensor, _ in outputs)),
        dense={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        unsaved=frozenset(tensors.keys() - saved.keys()),
        aliases=_aliases(tensors, saved),
        whole_groups=dict(ledger.whole_groups),
        ledger=ledger,
        parts=parts,
    )


def _single(ledger: Ledger) -> dict[str, str]:
    """Layers whose weights consume channels and make but one."""
    makers = {tensor for (tensor, _), role in ledger.roles.items() if role == "out"}
    single = (tensor for (tensor, _), role in ledger.roles.items() if role == "in" and tensor not in makers)
    return dict.fromkeys(map(layer_of, single), "its output is a single channel")


def _aliases(tensors: dict[str, Tensor], saved: dict[str, Tensor]) -> dict[str, str]:
    """Further names of tied tensors, and the first name of each."""
    first = {id(tensor): name for name, tensor in tensors.items()}
    return {name: first[id(t)] for name, t in saved.items() if first.get(id(t), name) != name}


def _units(parts: Components, nodes: Tensor) -> list[int]:
    """Representatives of the units among these nodes, once each, in order."""
    return [unit for unit in dict.fromkeys(parts.unit[nodes].tolist()) if unit != FIXED]


def _clusters(outputs: list[Axis], units: dict[Axis, list[int]]) -> list[tuple[list[Axis], Tensor]]:
    """Output axes that share units, and these units in the order in which they first appear."""
    merged: list[tuple[list[Axis], dict[int, None]]] = []
    where: dict[int, int] = {}  # unit -> its place in `merged`
    for axis in outputs:
        hits = sorted({where[unit] for unit in units[axis] if unit in where})
        merged.append(([axis], {}))
        for place in hits:
            merged[-1][0].extend(merged[place][0])
            merged[-1][1].update(merged[place][1])
            merged[place] = ([], {})
        merged[-1][1].update(dict.fromkeys(units[axis]))
        where.update(dict.fromkeys(merged[-1][1], len(merged) - 1))
    order = {axis: i for i, axis in enumerate(outputs)}
    full = [(sorted(axes, key=order.__getitem__), torch.tensor([*units], dtype=torch.int64)) for axes, units in merged]
    return sorted((cluster for cluster in full if cluster[0]), key=lambda cluster: order[cluster[0][0]])


def _group(
    cluster: tuple[list[Axis], Tensor], members: list[Member], sizes: list[Member], ledger: Ledger, parts: Components
) -> Group:
    outputs, units = cluster
    changes = [parts.changes[unit] for unit in units.tolist() if unit in parts.changes]
    reason = None
    if len(units) == 0:
        reason = parts.why_fixed(ledger.axes[outputs[0]])
    elif len(units) == 1:
        reason = "all of its channels must go together"
    return Group(
        key=layer_of(outputs[0][0]),
        units=len(units) if reason is None else 0,
        nodes=units if reason is None else units[:0],
        outputs=outputs,
        members=members if reason is None else [],
        sizes=sizes if reason is None else [],
        reason=reason,
        changes_function=changes[0] if changes else None,
    )


def _named(groups: list[Group]) -> list[Group]:
    """A key for each group: of a layer that makes several, the first has its name, others that of a weight, an axis."""
    taken: set[str] = set()
    result = []
    for group in groups:
        tensor, axis = group.outputs[0]
        key = next(name for name in (group.key, tensor, f"{tensor}[{axis}]") if name not in taken)
        taken.add(key)
        result.append(replace(group, key=key))
    return result


def never_called(network: nn.Module, ledger: Ledger) -> dict[str, str]:
    """Layers with parameters that took no part in the run, neither by being called nor by these."""
    named = (name for name, module in network.named_modules() if any(True for _ in module.parameters(recurse=False)))
    idle = [name for name in named if name not in ledger.called]
    used = {layer_of(tensor) for tensor in (*ledger.tied(), *(tensor for tensor, _ in ledger.roles))} if idle else {}
    return dict.fromkeys((name for name in idle if name not in used), "never called on these inputs")
