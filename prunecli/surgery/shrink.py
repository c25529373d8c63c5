"""The cut: a plan carried out on a live network, its optimizer, and what goes along with its tensors, in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunecli.errors import UsageError
from prunecli.sidecar import Surgery
from prunecli.surgery.attributes import Value, changed, counted, set_attributes
from prunecli.surgery.ledger import Axis
from prunecli.surgery.record import compose, take
from prunecli.surgery.structure import Plan, Structure, layer_of
from prunecli.surgery.twin import all_tensors, own_tensors


def apply(
    network: nn.Module,
    structure: Structure,
    plan: Plan,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    along: Sequence[dict[str, Tensor]] = (),
    record: Surgery | None = None,
) -> Surgery:
    """Cut a live network, in place, and return the record of all cuts, those of `record` included.

    Parameters stay the same objects, so that an optimizer and its schedule go on driving them; their optimizer state
    and gradients are cut along, and so is what goes `along`: masks, accumulated scores, by tensor name and of the
    tensor's shape. Everything is checked before anything is cut.
    Raises UsageError for a plan or structure of another network, for an optimizer of another network or with a state
    that cannot be cut, and for what goes along in other shapes; TargetError for a plan that empties a layer.
    """
    keep = structure.keep_masks(plan)
    check(structure, network, along)
    if optimizer is not None:
        _check_optimizer(optimizer, all_tensors(network))
    names = _names(structure)
    kept = {(n, axis): mask.nonzero()[:, 0] for (name, axis), mask in keep.items() for n in names[name]}
    lengths = {(n, axis): len(mask) for (name, axis), mask in keep.items() for n in names[name]}
    result = compose(record, kept, lengths)
    attributes = cut(network, structure, keep, structure.size_masks(plan), optimizer=optimizer, along=along)
    result.attributes |= {layer: result.attributes.get(layer, {}) | new for layer, new in attributes.items()}
    return result


def cut(
    network: nn.Module,
    structure: Structure,
    keep: Mapping[Axis, Tensor],
    sizes: Mapping[Axis, Tensor],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    along: Sequence[dict[str, Tensor]] = (),
) -> dict[str, dict[str, Value]]:
    """The cut itself, of axes and of integers in modules to what these masks keep; returns the attributes it set."""
    tensors, names = all_tensors(network), _names(structure)
    by_tensor: dict[str, dict[int, Tensor]] = {}
    for (name, axis), mask in keep.items():
        by_tensor.setdefault(name, {})[axis] = mask.nonzero()[:, 0]
    for name, places in by_tensor.items():
        _cut(tensors[name], places, optimizer)
        for entries in along:
            entries |= {n: take(entries[n], places) for n in names[name] if n in entries}
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
    """Cut a tensor in place, with its gradient and the optimizer's state, which has axes of its length or 1."""
    shape, gradient, dense = tensor.shape, tensor.grad, tensor.data
    tensor.grad = None
    if tensor.requires_grad:  # a loss that is still held keeps a node that expects gradients of the old shape; a
        tensor.data = dense.new_empty(0, dtype=_another(dense.dtype))  # change of type makes PyTorch forget that node
    tensor.data = take(dense, kept)
    if gradient is not None:
        tensor.grad = take(gradient, kept)
    if optimizer is not None and tensor in optimizer.state:
        state = optimizer.state[tensor]
        for key, value in state.items():
            if isinstance(value, Tensor) and value.ndim == len(shape):
                state[key] = take(value, {axis: places for axis, places in kept.items() if value.shape[axis] > 1})


def _another(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype != torch.float64 else torch.float32


def check(structure: Structure, network: nn.Module, along: Sequence[dict[str, Tensor]] = ()) -> None:
    """Is this structure of this network, and does `along` fit it? Raises UsageError, naming a tensor, when not."""
    tensors = all_tensors(network)
    for name, shape in structure.dense.items():
        found = tuple(tensors[name].shape) if name in tensors else "missing"
        if found != shape:
            raise UsageError(f"the structure says {shape} of {name}, the network {found}", "trace this network again")
    for name in own_tensors(network).keys() - structure.dense.keys():
        raise UsageError(f"the structure knows nothing of the network's {name}", "trace this network again")
    for name, entry in (item for entries in along for item in entries.items()):
        found = tuple(entry.shape) if isinstance(entry, Tensor) else "no tensor"
        if name not in tensors or found != tuple(tensors[name].shape):
            raise UsageError(f"what goes along with {name} is {found}, unlike the network's tensor", "leave it out")


def _check_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Does it drive parameters of this network, with a state that has their axes?"""
    names = {id(tensor): name for name, tensor in tensors.items()}
    if not any(id(tensor) in names for group in optimizer.param_groups for tensor in group["params"]):
        raise UsageError("the optimizer drives no parameter of this network", "give the one that trains it")
    for tensor, state in optimizer.state.items():
        for key, value in state.items():
            wrong = [part for part in tree_leaves(value) if isinstance(part, Tensor) and part.numel() != 1]
            if isinstance(value, Tensor) and value.ndim == tensor.ndim:
                wrong = [] if all(n in (1, m) for n, m in zip(value.shape, tensor.shape, strict=True)) else wrong
            if wrong:
                name = names.get(id(tensor), "a tensor of another network")
                raise UsageError(
                    f"{type(optimizer).__name__} keeps {key} of {name} as {tuple(wrong[0].shape)}, which cannot be cut",
                    "make the optimizer anew after the cut",
                )
