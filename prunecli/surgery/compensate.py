"""Compensation: what removed units contribute whatever the input is, folded into the layers that read them.

A batch norm with scale 0 and shift b makes a unit that is act(b) everywhere, as does a convolution of zeros and a bias.
Nothing is concluded from kinds of layers: the network runs on a few inputs, and a slice that a convolution or linear
layer reads is constant if it was the same in all of these runs. What such slices add to the layer's output is what the
layer's own operation makes of them alone. That goes into the layer's bias or, where it has none, off the running mean
of the batch norm right behind it, which is the same in eval mode (and nothing in train mode, where the batch norm
removes it anyway); a layer with neither would need a new parameter and is left alone. What differs between places, as
at the border of a convolution that pads with zeros, is folded by its mean, the nearest constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.surgery.reads import ULPS, Gone, Read, ReadMode
from prunecli.surgery.structure import Plan, Structure, layer_of
from prunecli.surgery.twin import own_tensors


@dataclass(frozen=True)
class Folded:
    """What became of `removed` units: `constant` of them added a constant that is not zero to what reads them.

    Of those `folded` went wholly into their readers.

    `approximate` has, by layer, the largest error of what was folded as a share of it; `refused` why a layer took none.
    """

    removed: int
    constant: int
    folded: int
    approximate: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def after(self, earlier: Folded | None) -> Folded:
        """The same of this cut and an earlier one."""
        if earlier is None:
            return self
        return Folded(
            self.removed + earlier.removed,
            self.constant + earlier.constant,
            self.folded + earlier.folded,
            earlier.approximate | self.approximate,
            earlier.refused | self.refused,
        )


def compensate(network: nn.Module, structure: Structure, plan: Plan, runs: Sequence[tuple[Any, ...]]) -> Folded:
    """Fold, in place and before the cut, what the units that `plan` removes contribute to the layers that stay.

    `runs` are inputs of the network, two or more that have little in common: what is the same in all of them counts as
    constant. They run in eval mode.
    """
    gone, removed = _gone(structure, plan)
    mode = ReadMode(own_tensors(network), gone)
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.inference_mode():
            for inputs in runs:
                mode.run(network, inputs)
            added = [read.added() for read in mode.reads]
    finally:
        for module, training in modes.items():
            module.training = training
    refused, approximate = _fold(mode, added)
    active, lost = (torch.zeros(removed, dtype=torch.bool) for _ in range(2))
    for read in mode.reads:
        active[read.gone.units[read.values.flatten(1).any(1).cpu()]] = True
        lost[read.gone.units[~read.same]] = True
    constant = active & ~lost
    for tensor in gone.keys() - {read.tensor for read in mode.reads}:
        if not bool(lost[gone[tensor].units].all()):
            refused[layer_of(tensor)] = "what it reads is seen only of convolutions and linear layers that run"
            lost[gone[tensor].units] = True
    for read in mode.reads:
        if layer_of(read.tensor) in refused:
            lost[read.gone.units] = True
    return Folded(removed, int(constant.sum()), int((constant & ~lost).sum()), approximate, refused)


def _gone(structure: Structure, plan: Plan) -> tuple[dict[str, Gone], int]:
    """What of each weight reads removed units, which are numbered through all groups, and how many these are."""
    found: dict[str, Gone] = {}
    count = 0
    for key, kept in plan.kept.items():
        group = structure.by_key[key]
        number = torch.full([group.units + 1], -1)  # the last stands for slices of other groups
        removed = sorted({*range(group.units)} - {*kept})
        number[removed] = torch.arange(count, count + len(removed))
        count += len(removed)
        for member in (member for member in group.members if member.role == "in"):
            units = number[member.unit]
            slices = (units >= 0).nonzero()[:, 0]
            earlier = found.get(member.tensor, Gone(slices[:0], slices[:0], len(units)))
            found[member.tensor] = Gone(
                torch.cat([earlier.slices, slices]), torch.cat([earlier.units, units[slices]]), len(units)
            )
    return {tensor: gone for tensor, gone in found.items() if len(gone.slices)}, count


def _fold(mode: ReadMode, added: list[Tensor]) -> tuple[dict[str, str], dict[str, float]]:
    """Take constants into biases and running means. Returns why layers took none, and errors by layer."""
    refused: dict[str, str] = {}
    approximate: dict[str, float] = {}
    wanted: dict[int, list[tuple[Read, Tensor]]] = {}
    for read, places in zip(mode.reads, added, strict=True):
        if read.sink is not None:
            wanted.setdefault(id(read.sink), []).append((read, places))
        elif bool(places.any()):
            refused[layer_of(read.tensor)] = "it has no bias, and no batch norm right behind it"
    for number, reads in wanted.items():
        read, places = reads[0]
        sink, constant, eps = read.sink, places.mean(1), ULPS * torch.finfo(places.dtype).eps
        assert sink is not None
        equal = all(torch.allclose(constant, other.mean(1), rtol=eps) for _, other in reads[1:])
        if len(reads) < mode.uses[number] or not equal:
            refused |= {layer_of(r.tensor): "its bias is also added elsewhere" for r, p in reads if bool(p.any())}
            continue
        sink.data = sink.data + constant.to(sink.dtype) * (1 if sink is read.bias else -1)
        error = float((places - constant[:, None]).abs().max() / places.abs().max()) if bool(places.any()) else 0.0
        if error > eps:
            approximate[layer_of(read.tensor)] = error
    return refused, approximate
