"""The shape that a scratch run trains: as pruned, or one of the same size whose layers or weights are chosen otherwise.

Liu et al. 2019, section 5 (uniform, guided and transferred pruning and sparsification) and the equivalent thin dense
network of *Weight Pruning via Adaptive Sparsity Loss*. Which units of a layer stay does not matter for new weights: the
first ones do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunecli.checkpoint import Checkpoint, unpack_mask
from prunecli.errors import UsageError
from prunecli.measure import Totals, cost, totals
from prunecli.retraining import sparsity, widths
from prunecli.sidecar import Cost, Surgery
from prunecli.surgery import Group, Plan, Structure, apply, replay, trace, verify

Masks = dict[str, Tensor]


@dataclass(frozen=True)
class Pruned:
    """A pruned checkpoint beside the structure of its dense network."""

    checkpoint: Checkpoint
    structure: Structure
    cost: Cost  # of the dense network
    example: Tensor  # a batch that it runs on

    @property
    def masks(self) -> Masks:
        """Masks in the order in which their layers act."""
        packed = self.checkpoint.sidecar.masks
        order = [*(name for name in self.cost.positions if name in packed), *packed]
        return {name: unpack_mask(packed[name]) for name in dict.fromkeys(order)}

    @property
    def layers(self) -> dict[str, int]:
        """Units of the layers that share the cuts: those cut alone, and residual sums too where one of them was cut."""
        record = self.checkpoint.sidecar.surgery
        groups = [group for group in self.structure.groups if group.prunable]
        tied = any(len(g.producers) > 1 and kept_units(g, record) < g.units for g in groups)
        return {g.key: g.units for g in groups if tied or len(g.producers) == 1}

    @property
    def widths(self) -> dict[str, int]:
        """Units that each of `layers` has kept."""
        record = self.checkpoint.sidecar.surgery
        return {key: kept_units(self.structure.by_key[key], record) for key in self.layers}

    @property
    def layer_stages(self) -> dict[str, int]:
        """Stage numbers of `layers`."""
        return widths.number_stages({key: self._map(self.structure.by_key[key].producers[0]) for key in self.layers})

    @property
    def mask_stages(self) -> dict[str, int]:
        """Stage numbers of masked tensors."""
        return widths.number_stages({name: self._map(name) for name in self.masks})

    def _map(self, weight: str) -> int | None:
        """Size of the map that a convolution makes, None for other weights."""
        return self.cost.positions.get(weight, 0) if len(self.structure.dense[weight]) > 2 else None

    def sums(self, chosen: dict[str, int]) -> Totals:
        """Parameters and MACs of the dense network with its layers as wide as `chosen`; others stay whole."""
        return totals(self.cost, self.structure.shapes(first_units(chosen)), {})


def has_whole_heads(checkpoint: Checkpoint) -> bool:
    """Did a step before it cut whole heads of attention?"""
    return any(step.options.get("heads") for step in checkpoint.sidecar.history)


def dense(checkpoint: Checkpoint, network: nn.Module, *, heads: bool) -> Pruned:
    """`checkpoint` beside the structure of `network`, the dense network that it was cut from.

    With `heads` the units of attention are whole heads.
    """
    example = torch.zeros(2, *checkpoint.sidecar.cost.input)  # two, for batch norms in train mode
    return Pruned(checkpoint, trace(network, example, heads=heads), cost(network, example), example)


def kept_units(group: Group, record: Surgery) -> int:
    """How many units of a group `record` has left."""
    makers = (m for m in group.members if m.tensor in group.producers and m.role == "out")
    member = next((m for m in makers if not record.without(m.tensor)), None)
    number = record.axes.get(member.tensor, {}).get(str(member.axis)) if member else None
    if number is None or member is None:
        return group.units
    units: list[int] = member.unit[record.index[number].kept].tolist()
    return len({unit for unit in units if unit >= 0})


def take_shape(
    shape: str, network: nn.Module, pruned: Pruned, guide: Pruned | None, match: str, generator: torch.Generator
) -> tuple[Surgery, Masks]:
    """Cut the dense `network` to `shape` in place; returns what was cut, and the masks that it gets.

    A masked input gets new masks on its own widths, any other new widths; "thin" gives widths to both.
    """
    record, masks = pruned.checkpoint.sidecar.surgery, pruned.masks
    if shape == "same" or (masks and shape != "thin"):
        replay(network, record)
        return record, masks if shape == "same" else _masks(shape, pruned, guide, generator)
    plan = first_units(_widths(shape, pruned, guide, match))
    verify(network, pruned.structure, plan, pruned.example)
    return apply(network, pruned.structure, plan), {}


def _masks(shape: str, pruned: Pruned, guide: Pruned | None, generator: torch.Generator) -> Masks:
    source = guide or pruned
    if not source.masks:
        raise UsageError(f"--guide {source.checkpoint.path}: has no masks", "guide a masked network with a masked one")
    _same_stages(source, source.mask_stages, pruned.mask_stages)
    if shape == "uniform":
        share = sparsity.shares(pruned.masks, sparsity.one_pool)
        return sparsity.draw(pruned.masks, sparsity.one_pool, share, generator)
    share = sparsity.shares(source.masks, sparsity.by_stage(source.mask_stages))
    return sparsity.draw(pruned.masks, sparsity.by_stage(pruned.mask_stages), share, generator)


def _widths(shape: str, pruned: Pruned, guide: Pruned | None, match: str) -> dict[str, int]:
    if shape == "thin":
        everything = {group.key: group.units for group in pruned.structure.groups if group.prunable}
        return widths.thin(everything, _size(pruned, "params") / _sizer(pruned, "params")({}))
    if shape == "uniform":
        return widths.uniform(pruned.layers, _sizer(pruned, match), _size(pruned, match))
    source = guide or pruned
    if absent := [*source.checkpoint.sidecar.surgery.absent]:
        name = source.checkpoint.path or "the guide"
        raise UsageError(
            f"--shape guided: {name} has lost {absent[0]} as a whole, which no width of a stage says",
            "use --shape same, uniform or thin",
        )
    if guide and not any(source.widths[key] < units for key, units in source.layers.items()):
        raise UsageError(f"--guide {source.checkpoint.path}: it has no cuts", "guide with a network that prune has cut")
    shares = widths.stage_shares(source.layers, source.widths, source.layer_stages)
    _same_stages(source, source.layer_stages, pruned.layer_stages)
    return widths.guided(pruned.layers, pruned.layer_stages, shares)


def _same_stages(guide: Pruned, theirs: dict[str, int], ours: dict[str, int]) -> None:
    counts = [max(stages.values(), default=widths.LINEAR) + 1 for stages in (theirs, ours)]
    if counts[0] != counts[1]:
        raise UsageError(
            f"--guide {guide.checkpoint.path}: {counts[0]} stages of equally large maps there, {counts[1]} here",
            "guide with a network of as many stages",
        )


def _size(pruned: Pruned, match: str) -> float:
    """Size of the pruned network: weights that are left, or MACs."""
    sums = sums_of(pruned.checkpoint)
    return sums.nonzero_params if match == "params" else sums.macs


def _sizer(pruned: Pruned, match: str) -> Callable[[dict[str, int]], float]:
    """Size of the network as a function of its layers' widths."""

    def size(chosen: dict[str, int]) -> float:
        sums = pruned.sums(chosen)
        return sums.params if match == "params" else sums.macs

    return size


def sums_of(checkpoint: Checkpoint) -> Totals:
    """Parameters and MACs of a checkpoint."""
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
    return totals(checkpoint.sidecar.cost, shapes, checkpoint.sidecar.masks)


def first_units(chosen: dict[str, int]) -> Plan:
    """The plan that keeps the first units of each layer, as many as `chosen` says."""
    return Plan({key: list(range(width)) for key, width in chosen.items()})
