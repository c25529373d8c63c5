"""What can be cut from a network: groups of units, and what a plan leaves of every tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral

import torch
from torch import Tensor

from prunecli.errors import TargetError, UsageError, nearest
from prunecli.surgery.ledger import Axis, Components, Ledger


@dataclass(frozen=True)
class Member:
    """An axis of a parameter or buffer that loses slices with a group.

    `unit` [axis length] is the group's unit at each slice, -1 where the slice belongs to another group or to none.
    `role`: "out" where a weight makes the units, "in" where a weight consumes them, "norm" for a normalisation's
    parameters and statistics, "other" for biases, depthwise weights, scales.
    """

    tensor: str
    axis: int
    unit: Tensor
    role: str


@dataclass(frozen=True)
class Group:
    """Units that share the output axes of some weights; `key` is the first of these layers.

    `units` counts those that may be removed; a group of which none may says why in `reason`. `nodes` [units] has a node
    of each in the ledger of the trace. `changes_function` says why a cut is more than the removal of its units (a layer
    norm over the cut axis), None where cutting equals masking. `sizes` are attributes of modules that count the units
    (`num_heads`), with the item of a list in place of an axis.
    """

    key: str
    units: int
    nodes: Tensor = field(repr=False)
    outputs: list[Axis]
    members: list[Member]
    sizes: list[Member] = field(default_factory=list)
    reason: str | None = None
    changes_function: str | None = None

    @property
    def prunable(self) -> bool:
        """Can any unit be removed?"""
        return self.reason is None

    @property
    def producers(self) -> list[str]:
        """The weights whose output axes make the units."""
        return [tensor for tensor, _ in self.outputs]

    @property
    def layers(self) -> list[str]:
        """The layers whose outputs the units are."""
        return [layer_of(tensor) for tensor in self.producers]

    @cached_property
    def whole_axes(self) -> list[list[int]]:
        """The units of each axis that this group alone makes up, equal ones once: one of each has to stay.

        They are all units, and where a layer makes only some of them, as in `cat([a(x), b(x)]) + c(x)`, those too.
        """
        own = [member.unit.unique().tolist() for member in self.members if bool((member.unit >= 0).all())]
        return [list(units) for units in {tuple(range(self.units)): None} | dict.fromkeys(map(tuple, own))]

    def needed(self, scores: Sequence[float]) -> list[int]:
        """Units that stay whatever is asked: of each of `whole_axes` the one with the best score, of ties the last."""
        return sorted({max(units, key=lambda unit: (scores[unit], unit)) for units in self.whole_axes})


@dataclass(frozen=True)
class Plan:
    """Kept unit indices, ascending, by group key; a group that is not named keeps all."""

    kept: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Structure:
    """All groups of a network in the order of their first layers, and why the layers in `frozen` cannot be cut.

    `order` lists the layers whose weights make channels, in the order of their first call. `dense` has the shape of
    every parameter and buffer when it was traced, also of the buffers in `unsaved`, which the `state_dict` lacks;
    `aliases` maps further names of tied tensors to the first. `whole_groups` says of grouped convolutions whether they
    lose whole groups or the same positions of every group. `ledger` and `parts` are the trace itself, with which runs
    of a cut network are compared.
    """

    groups: list[Group]
    frozen: dict[str, str]
    order: list[str]
    dense: dict[str, tuple[int, ...]]
    unsaved: frozenset[str]
    aliases: dict[str, str]
    whole_groups: dict[str, bool]
    ledger: Ledger = field(repr=False)
    parts: Components = field(repr=False)

    @cached_property
    def by_key(self) -> dict[str, Group]:
        """Groups by key."""
        return {group.key: group for group in self.groups}

    def group_of(self, layer: str) -> Group:
        """The group of a layer's outputs, of several one that can be cut. Raises UsageError when it makes none."""
        groups = [group for group in self.groups if layer in group.layers]
        if not groups:
            raise UsageError(f"layer {layer!r} has no channels of its own", nearest(layer, self.order))
        return next((group for group in groups if group.prunable), groups[0])

    def widths(self, plan: Plan) -> dict[str, int]:
        """Output channels of every layer of `order` after the plan."""
        lengths = self._lengths(plan)
        widths = dict.fromkeys(self.order, 0)
        for group in sorted(self.groups, key=lambda group: group.prunable):
            widths |= {layer_of(t): lengths.get((t, a), self.dense[t][a]) for t, a in group.outputs}
        return widths

    def shapes(self, plan: Plan) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter and saved buffer after the plan, by every name it has."""
        shapes = {name: list(shape) for name, shape in self.dense.items()}
        for (tensor, axis), length in self._lengths(plan).items():
            shapes[tensor][axis] = length
        for alias, name in self.aliases.items():
            shapes[alias] = shapes[name]
        return {name: tuple(shape) for name, shape in shapes.items() if name not in self.unsaved}

    def keep_masks(self, plan: Plan) -> dict[Axis, Tensor]:
        """What each axis keeps, bool [axis length], for the axes that lose anything.

        Raises UsageError for a plan that does not fit this network and TargetError for one that empties a layer.
        """
        self._check(plan)
        masks = self._kept(plan, self.ledger.axes)
        for (tensor, position), mask in masks.items():
            if not bool(mask.any()):
                raise TargetError(f"the plan leaves nothing of axis {position} of {tensor}", "keep more of this layer")
        return masks

    def size_masks(self, plan: Plan) -> dict[Axis, Tensor]:
        """The same for the integers in modules that count what the plan cuts, by attribute and item of a list."""
        return self._kept(plan, self.ledger.sizes)

    def _kept(self, plan: Plan, axes: dict[Axis, Tensor]) -> dict[Axis, Tensor]:
        gone = torch.zeros(len(self.parts.unit), dtype=torch.bool)
        for key, kept in plan.kept.items():
            nodes = self.by_key[key].nodes
            gone[nodes] = True
            gone[nodes[kept]] = False
        stays = ~gone[self.parts.unit]
        masks = {axis: stays[nodes] for axis, nodes in axes.items()}
        return {axis: mask for axis, mask in masks.items() if not bool(mask.all())}

    def _check(self, plan: Plan) -> None:
        for key, kept in plan.kept.items():
            if key not in self.by_key:
                raise UsageError(f"the plan cuts layer {key!r}, which this network has not", nearest(key, self.by_key))
            group = self.by_key[key]
            if not isinstance(kept, list) or any(t is bool or not issubclass(t, Integral) for t in {*map(type, kept)}):
                raise UsageError(
                    f"the plan for layer {key!r} is no list of whole numbers", "list the channels that stay, [0, 2, 5]"
                )
            if not kept and group.units:
                raise TargetError(f"the plan removes every channel of layer {key!r}", "at least one must stay")
            if kept != sorted({*kept}) or (kept and not 0 <= kept[0] <= kept[-1] < group.units):
                raise UsageError(
                    f"the plan for layer {key!r} keeps channels that are not ascending within its {group.units}",
                    "was it made for another network?",
                )

    def _lengths(self, plan: Plan) -> dict[Axis, int]:
        """Length of each axis that a plan can change; single slices are looked at only where units differ in size."""
        lengths = dict(self._full)
        for key, kept in plan.kept.items():
            group = self.by_key[key]
            removed = group.units - len(kept)
            for axis, size, sizes in self._sizes[key]:
                lengths[axis] -= removed * size if sizes is None else int(sizes.sum() - sizes[kept].sum())
        return lengths

    @cached_property
    def _full(self) -> dict[Axis, int]:
        return {(m.tensor, m.axis): len(m.unit) for group in self.groups for m in group.members}

    @cached_property
    def _sizes(self) -> dict[str, list[tuple[Axis, int, Tensor | None]]]:
        """By group: slices a unit has on each axis, as one number where all units have as many."""
        result: dict[str, list[tuple[Axis, int, Tensor | None]]] = {}
        for group in self.groups:
            result[group.key] = []
            for member in group.members:
                sizes = torch.bincount(member.unit[member.unit >= 0], minlength=group.units)
                uniform = bool((sizes == sizes[0]).all())
                result[group.key].append(((member.tensor, member.axis), int(sizes[0]), None if uniform else sizes))
        return result


def layer_of(tensor: str) -> str:
    """Name of the module that owns a parameter or buffer; of a parametrised weight, that of the weight's module."""
    owner, _, parametrised = f".{tensor}".partition(".parametrizations.")
    return (owner if parametrised else owner.rpartition(".")[0])[1:]
