"""The record of what was cut: kept indices in the original dense network, composed, and replayed on dense weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunecli.errors import DamagedError
from prunecli.models.absent import check_absent, leave_out
from prunecli.sidecar import IndexSet, Surgery
from prunecli.surgery.attributes import set_attributes
from prunecli.surgery.ledger import Axis
from prunecli.surgery.twin import all_tensors

_HINT = "the record of cuts belongs to another network; use the dense checkpoint of the same architecture"


def compose(earlier: Surgery | None, kept: Mapping[Axis, Tensor], lengths: Mapping[Axis, int]) -> Surgery:
    """The record after a further cut that keeps the indices `kept` of axes that had `lengths`; attributes are not set.

    Raises DamagedError when `earlier` does not describe axes of these lengths.
    """
    earlier = earlier or Surgery()
    sets = {
        (tensor, int(axis)): earlier.index[number]
        for tensor, axes in earlier.axes.items()
        for axis, number in axes.items()
    }
    for axis, indices in kept.items():
        before = sets.get(axis)
        if before is not None and len(before.kept) != lengths[axis]:
            raise _misfit(axis, f"keeps {len(before.kept)} slices and the network has {lengths[axis]}")
        original = indices.tolist() if before is None else torch.tensor(before.kept)[indices].tolist()
        sets[axis] = IndexSet(of=lengths[axis] if before is None else before.of, kept=original)
    numbers: dict[tuple[int, tuple[int, ...]], int] = {}
    record = Surgery(attributes=dict(earlier.attributes), absent=earlier.absent)
    for (tensor, position), entry in sets.items():
        number = numbers.setdefault((entry.of, tuple(entry.kept)), len(numbers))
        if number == len(record.index):
            record.index.append(entry)
        record.axes.setdefault(tensor, {})[str(position)] = number
    return record


def apply_record(state: Mapping[str, Tensor], record: Surgery) -> dict[str, Tensor]:
    """A dense state dict of any moment, or part of one, cut as recorded; `state` is left alone.

    Raises DamagedError naming the tensor when the record does not fit.
    """
    state = {name: tensor for name, tensor in state.items() if not record.without(name)}
    known = Surgery(index=record.index, axes={name: axes for name, axes in record.axes.items() if name in state})
    return dict(state) | {name: take(state[name], kept) for name, kept in _indices(state, known).items()}


def replay(network: nn.Module, record: Surgery) -> None:
    """Cut a dense network in place as recorded.

    Raises DamagedError, with nothing changed, when the record does not fit.
    """
    check_absent(network, record)
    tensors = all_tensors(network)
    indices = _indices(tensors, record)
    modules = dict(network.named_modules(remove_duplicate=False))
    for layer, attributes in record.attributes.items():
        for name in attributes:
            if not hasattr(modules.get(layer), name):
                raise DamagedError(f"the record of cuts sets {name} of layer {layer!r}, which has none", _HINT)
    for tensor, kept in {id(tensors[name]): (tensors[name], kept) for name, kept in indices.items()}.values():
        with torch.no_grad():
            tensor.data = take(tensor.data, kept)
    set_attributes(network, record.attributes)
    leave_out(network, record.absent)


def take(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """The slices `kept[axis]` of a tensor."""
    for axis, indices in kept.items():
        tensor = tensor.index_select(axis, indices.to(tensor.device))
    return tensor


def _indices(tensors: Mapping[str, Tensor], record: Surgery) -> dict[str, dict[int, Tensor]]:
    """Recorded indices by tensor and axis, checked against the tensors."""
    sets = [torch.tensor(entry.kept) for entry in record.index]
    result: dict[str, dict[int, Tensor]] = {}
    for name, axes in record.axes.items():
        for axis, number in axes.items():
            shape = tuple(tensors[name].shape) if name in tensors else ()
            length = shape[int(axis)] if int(axis) < len(shape) else None
            if length != record.index[number].of:
                problem = f"is for {record.index[number].of} slices and there are {length or 'none'}"
                raise _misfit((name, int(axis)), problem)
            result.setdefault(name, {})[int(axis)] = sets[number]
    return result


def _misfit(axis: Axis, problem: str) -> DamagedError:
    return DamagedError(f"the record of cuts of axis {axis[1]} of {axis[0]} {problem}", _HINT)
