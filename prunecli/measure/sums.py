"""Parameters, multiply-adds and sparsity of a checkpoint, from shapes and masks alone, without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunecli.sidecar import Cost, Gone, Mask, Surgery

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One module that has parameters. `shape` is its weight's; MACs are those of one example.

    `kind` is "conv 3x3", "linear" or "other", as far as shapes tell; `original_shape` is the weight's before any cut.
    Masked weights count in `params` and not in `nonzero`; `masked` are the weights under a mask, kept or not.
    """

    name: str
    kind: str
    shape: Shape
    original_shape: Shape
    params: int
    nonzero: int
    original_params: int
    masked: int
    macs: int
    effective_macs: int
    original_macs: int

    @property
    def sparsity(self) -> float:
        """Share of this layer's parameters that a mask removes."""
        return _share(self.nonzero, self.params)


@dataclass(frozen=True)
class Totals:
    """Sums over a network; parameters include those of normalisations, not buffers such as running statistics.

    `original_*` is the network before anything was cut; `original_macs` is None where a cut changed products of
    activations, whose earlier size shapes do not tell.
    """

    layers: tuple[Layer, ...]  # those with MACs in the order in which they act, then the others
    params: int
    nonzero_params: int
    original_params: int
    macs: int
    effective_macs: int
    original_macs: int | None
    other_macs: int
    masked_params: int

    @property
    def sparsity(self) -> float:
        """Share of zeros among the weights that have a mask ("prunable"); 0 where nothing is masked."""
        return (self.params - self.nonzero_params) / self.masked_params if self.masked_params else 0.0

    @property
    def sparsity_all(self) -> float:
        """Share of masked zeros among all parameters."""
        return _share(self.nonzero_params, self.params)


def totals(
    cost: Cost, shapes: Mapping[str, Sequence[int]], masks: Mapping[str, Mask], surgery: Surgery | None = None
) -> Totals:
    """The sums of a checkpoint whose tensors have `shapes` (buffers may be among them).

    Masked weights count as parameters and MACs, and not as non-zero parameters and effective MACs: the mask decides,
    not the value, since a live weight may pass through zero.
    """
    surgery = surgery or Surgery()
    buffers = set(cost.buffers)
    members: dict[str, list[str]] = {}
    for name in (*cost.positions, *sorted(shapes, key=_natural)):
        if name in shapes and name not in buffers:
            tensors = members.setdefault(name.rpartition(".")[0], [])
            if name not in tensors:
                tensors.append(name)
    layers = tuple(_layer(layer, tensors, cost, shapes, masks, surgery) for layer, tensors in members.items())
    layers += tuple(_absent(name, gone) for name, gone in _owned(surgery).items())
    exact = not (cost.other_macs and (surgery.axes or surgery.absent))
    return Totals(
        layers=layers,
        params=sum(layer.params for layer in layers),
        nonzero_params=sum(layer.nonzero for layer in layers),
        original_params=sum(layer.original_params for layer in layers),
        macs=sum(layer.macs for layer in layers) + cost.other_macs,
        effective_macs=sum(layer.effective_macs for layer in layers) + cost.other_macs,
        original_macs=sum(layer.original_macs for layer in layers) + cost.other_macs if exact else None,
        other_macs=cost.other_macs,
        masked_params=sum(layer.masked for layer in layers),
    )


def _layer(
    layer: str,
    tensors: list[str],
    cost: Cost,
    shapes: Mapping[str, Sequence[int]],
    masks: Mapping[str, Mask],
    surgery: Surgery,
) -> Layer:
    size = {name: math.prod(shapes[name]) for name in tensors}
    kept = {name: masks[name].kept if name in masks else size[name] for name in tensors}
    original = {name: _original(name, shapes[name], surgery) for name in tensors}
    positions = {name: cost.positions.get(name, 0) for name in tensors}
    # The weight speaks for the layer: in a module with several, the one with the most MACs, then the largest.
    weight = max(tensors, key=lambda name: (positions[name] * size[name], size[name]))
    return Layer(
        name=layer or weight,
        kind=_kind(shapes[weight]) if positions[weight] else "other",
        shape=tuple(shapes[weight]),
        original_shape=original[weight],
        params=sum(size.values()),
        nonzero=sum(kept.values()),
        original_params=sum(math.prod(shape) for shape in original.values()),
        masked=sum(size[name] for name in tensors if name in masks),
        macs=sum(size[name] * positions[name] for name in tensors),
        effective_macs=sum(kept[name] * positions[name] for name in tensors),
        original_macs=sum(math.prod(original[name]) * positions[name] for name in tensors),
    )


def _owned(surgery: Surgery) -> dict[str, list[Gone]]:
    """Parameters of absent modules, the weight first, by the layer that had them."""
    layers: dict[str, list[Gone]] = {}
    for name, gone in surgery.gone.items():
        layers.setdefault(name.rpartition(".")[0] or name, []).append(gone)
    return {
        name: sorted(found, key=lambda g: g.positions * math.prod(g.shape), reverse=True)
        for name, found in layers.items()
    }


def _absent(layer: str, gone: list[Gone]) -> Layer:
    """A layer of which nothing is left."""
    weight = gone[0]
    return Layer(
        name=layer,
        kind=_kind(weight.shape) if weight.positions else "other",
        shape=(0, *weight.shape[1:]),
        original_shape=tuple(weight.shape),
        params=0,
        nonzero=0,
        original_params=sum(math.prod(g.shape) for g in gone),
        masked=0,
        macs=0,
        effective_macs=0,
        original_macs=sum(math.prod(g.shape) * g.positions for g in gone),
    )


def _original(name: str, shape: Sequence[int], surgery: Surgery) -> Shape:
    axes = surgery.axes.get(name, {})
    return tuple(surgery.index[axes[str(i)]].of if str(i) in axes else n for i, n in enumerate(shape))


def _kind(shape: Sequence[int]) -> str:
    return "linear" if len(shape) <= 2 else "conv " + "x".join(map(str, shape[2:]))


def _share(kept: int, whole: int) -> float:
    return (whole - kept) / whole if whole else 0.0


def _natural(name: str) -> list[tuple[int, str]]:
    """Orders layer2 before layer10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
