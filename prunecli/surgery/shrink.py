"""The cut: a plan carried out on a live network, its optimizer and its masks, in place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunecli.errors import UsageError
from prunecli.sidecar import Surgery
from prunecli.surgery.attributes import Value, changed, counted, set_attributes
from prunecli.surgery.ledger import Axis
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
    keep = structure.keep_masks(plan)
    _check(structure, all_tensors(network), masks or {})
    names = _names(structure)
    kept = {(n, axis): mask.nonzero()[:, 0] for (name, axis), mask in keep.items() for n in names[name]}
    lengths = {(n, axis): len(mask) for (name, axis), mask in keep.items() for n in names[name]}
    result = compose(record, kept, lengths)
    attributes = cut(network, structure, keep, structure.size_masks(plan), optimizer=optimizer, masks=masks)
    result.attributes |= {layer: result.attributes.get(layer, {}) | new for layer, new in attributes.items()}
    return result


def cut(
    network: nn.Module,
    structure: Structure,
    keep: Mapping[Axis, Tensor],
    sizes: Mapping[Axis, Tensor],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    masks: dict[str, Tensor] | None = None,
) -> dict[str, dict[str, Value]]:
    """The cut itself, of axes and of integers in modules to what these masks keep; returns the attributes it set."""
    tensors, names = all_tensors(network), _names(structure)
    by_tensor: dict[str, dict[int, Tensor]] = {}
    for (name, axis), mask in keep.items():
        by_tensor.setdefault(name, {})[axis] = mask.nonzero()[:, 0]
    for name, places in by_tensor.items():
        _cut(tensors[name], places, optimizer)
        for masked in {*names[name]} & (masks or {}).keys():
            masks[masked] = take(masks[masked], places)  # type: ignore[index]
    layers = {layer_of(n): None for name in by_tensor for n in names[name]}
    attributes = changed(network, layers, structure.whole_groups)
    set_attributes(network, attributes)
    numbers = counted(network, {axis: int(mask.sum()) for axis, mask in sizes.items()})
    set_attributes(network, numbers)
    return attributes | {layer: attributes.get(layer, {}) | new for layer, new in numbers.items()}


def _names(structure: Structure) -> dict[str, list[str]]:
    """All names of every tensor, by its first."""
    names = {name: [name] for name in structure.dense}
    for alias, name in structure.aliases.items():
        names[name].append(alias)
    return names


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
