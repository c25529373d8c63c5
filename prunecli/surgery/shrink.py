"""The cut: a plan carried out on a live network, its optimizer and its masks, in place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunecli.errors import UsageError
from prunecli.sidecar import Surgery
from prunecli.surgery.attributes import changed, counted, set_attributes
from prunecli.surgery.record import compose, take
from prunecli.surgery.structure import Plan, Structure, layer_of
from prunecli.surgery.twin import all_tensors


def apply(
    network: nn.Module,
    structure: Structure,
    plan: Plan,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    masks: dict[str, Tensor] | None = None,
    record: Surgery | None = None,
) -> Surgery:
    """Cut a live network, in place, and return the record of all cuts, those of `record` included.

    Parameters stay the same objects, so that an optimizer and its schedule go on driving them; their optimizer state,
    gradients and entries of `masks` (by tensor name) are cut along. Everything is checked before anything is cut.
    Raises UsageError for a plan or structure of another network, TargetError for a plan that empties a layer.
    """
    kept = {axis: mask.nonzero()[:, 0] for axis, mask in structure.keep_masks(plan).items()}
    tensors = all_tensors(network)
    _check(structure, tensors, masks or {})
    names: dict[str, list[str]] = {name: [name] for name in structure.dense}
    for alias, name in structure.aliases.items():
        names[name].append(alias)
    lengths = {(n, axis): structure.dense[name][axis] for name, axis in kept for n in names[name]}
    result = compose(record, {(n, axis): i for (name, axis), i in kept.items() for n in names[name]}, lengths)
    by_tensor: dict[str, dict[int, Tensor]] = {}
    for (name, axis), indices in kept.items():
        by_tensor.setdefault(name, {})[axis] = indices
    for name, places in by_tensor.items():
        _cut(tensors[name], places, optimizer)
        for mask in {*names[name]} & (masks or {}).keys():
            masks[mask] = take(masks[mask], places)  # type: ignore[index]
    cut = {layer_of(name): None for name, _ in lengths}
    numbers = {axis: int(mask.sum()) for axis, mask in structure.size_masks(plan).items()}
    for values in (changed(network, cut, structure.whole_groups), counted(network, numbers)):
        set_attributes(network, values)
        result.attributes |= {layer: result.attributes.get(layer, {}) | new for layer, new in values.items()}
    return result


def _cut(tensor: Tensor, kept: dict[int, Tensor], optimizer: torch.optim.Optimizer | None) -> None:
    """Cut a tensor in place, with its gradient and the optimizer's state of its shape (momentum, moments)."""
    shape, gradient = tensor.shape, tensor.grad
    tensor.grad = None
    tensor.data = take(tensor.data, kept)
    if gradient is not None:
        tensor.grad = take(gradient, kept)
    if optimizer is not None and tensor in optimizer.state:
        state = optimizer.state[tensor]
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == shape:
                state[key] = take(value, kept)


def _check(structure: Structure, tensors: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
    for name, shape in structure.dense.items():
        found = tuple(tensors[name].shape) if name in tensors else "missing"
        if found != shape:
            raise UsageError(f"the structure says {shape} of {name}, the network {found}", "trace this network again")
    for name, mask in masks.items():
        if name not in tensors or mask.shape != tensors[name].shape:
            raise UsageError(f"the mask of {name} is {tuple(mask.shape)}, unlike the network's tensor", "drop the mask")
