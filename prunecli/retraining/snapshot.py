"""A dense snapshot of an earlier moment, cut and masked to the shape of the network that pruning made of it later.

Everything rewinds together: weights, biases, normalisation parameters and statistics, and the optimizer's state. Masks
apply to the tensors they belong to (convolutions and linear layers) and to their state.
"""

from __future__ import annotations

from msgspec.structs import replace
from torch import Tensor

from prunecli.checkpoint import Checkpoint, to_array, to_tensor, unpack_mask
from prunecli.errors import UsageError
from prunecli.sidecar import IndexSet, Optimizer, Surgery
from prunecli.surgery import apply_record


def cut_snapshot(pruned: Checkpoint, snapshot: Checkpoint) -> tuple[dict[str, Tensor], Optimizer | None]:
    """The snapshot's weights and optimizer in the shapes of `pruned`, its masks applied.

    The snapshot may be dense or itself cut or masked, as long as it still has all that `pruned` has. Raises
    `UsageError` when it has not, or is a snapshot of another network.
    """
    _same_network(pruned, snapshot)
    record = remaining(pruned.sidecar.surgery, snapshot.sidecar.surgery, label(snapshot))
    masks = {name: unpack_mask(mask) for name, mask in pruned.sidecar.masks.items()}
    weights = apply_record(snapshot.weights, record)
    for name, tensor in pruned.weights.items():
        if name not in weights or weights[name].shape != tensor.shape:
            found = tuple(weights[name].shape) if name in weights else "missing"
            raise UsageError(
                f"{label(snapshot)}: {name} is {found}, the pruned network's is {tuple(tensor.shape)}",
                "name a snapshot of the run that was pruned",
            )
    earlier = {name: unpack_mask(mask) for name, mask in snapshot.sidecar.masks.items() if name in weights}
    for name, old in apply_record(earlier, record).items():
        if name not in masks or bool((masks[name] & ~old).any()):
            raise UsageError(
                f"{label(snapshot)}: its mask of {name} lacks weights that {label(pruned)} keeps",
                "name an earlier snapshot",
            )
    weights = {name: weights[name] for name in pruned.weights}
    weights |= {name: weights[name] * mask for name, mask in masks.items()}
    return weights, _cut_optimizer(snapshot, record, masks)


def remaining(pruned: Surgery, snapshot: Surgery, name: str) -> Surgery:
    """The cuts that turn a network with the record `snapshot` into one with the record `pruned`.

    Raises `UsageError` naming the snapshot when it lacks something that the pruned network has.
    """
    index: list[IndexSet] = []
    axes: dict[str, dict[str, int]] = {}
    for tensor in (name for name in {**pruned.axes, **snapshot.axes} if not pruned.without(name)):
        old, new = snapshot.axes.get(tensor, {}), pruned.axes.get(tensor, {})
        for axis in sorted({*old, *new}):
            there = snapshot.index[old[axis]] if axis in old else None
            wanted = pruned.index[new[axis]] if axis in new else None
            if there == wanted:
                continue
            if wanted is None or (there and not {*wanted.kept} <= {*there.kept}):
                raise UsageError(
                    f"{name}: {tensor} was cut differently there, it lacks slices that the pruned network has",
                    "name a snapshot of the dense network, or one from before that cut",
                )
            if there:
                position = {kept: i for i, kept in enumerate(there.kept)}
                wanted = IndexSet(of=len(there.kept), kept=[position[i] for i in wanted.kept])
            axes.setdefault(tensor, {})[axis] = len(index)
            index.append(wanted)
    return Surgery(index=index, axes=axes, attributes=pruned.attributes, absent=pruned.absent)


def label(checkpoint: Checkpoint) -> str:
    """How a message names a checkpoint."""
    return str(checkpoint.path or "snapshot")


def other_run(pruned: Checkpoint, snapshot: Checkpoint) -> tuple[str, ...]:
    """A note when the steps that made the snapshot are not the first of those that made `pruned`.

    Rewinding to the start of another run is a control that some want on purpose; the same happens by mistake.
    """
    ours, theirs = (
        [(entry.command, entry.parent, entry.options) for entry in checkpoint.sidecar.history]
        for checkpoint in (pruned, snapshot)
    )
    return () if theirs == ours[: len(theirs)] else ("--to is no snapshot of the run that was pruned",)


def at_start(snapshot: Checkpoint, flag: str) -> None:
    """Raise `UsageError` naming `flag` unless the snapshot is the original initialisation."""
    training = snapshot.sidecar.training
    if training is None or (training.epoch, training.step) != (0, 0):
        where = f"is at epoch {training.epoch}, step {training.step}" if training else "records no training run"
        raise UsageError(
            f"{flag}: {label(snapshot)} {where}, it is not the initialisation",
            "name the snapshot of epoch 0, which train --keep 0 writes",
        )


def _same_network(pruned: Checkpoint, snapshot: Checkpoint) -> None:
    ours, theirs = pruned.sidecar.arch, snapshot.sidecar.arch
    if ours != theirs:
        raise UsageError(
            f"{label(snapshot)} is {theirs.name} {theirs.args}, {label(pruned)} is {ours.name} {ours.args}",
            "name a snapshot of the run that was pruned: train --keep 0,2 writes them",
        )


def _cut_optimizer(snapshot: Checkpoint, record: Surgery, masks: dict[str, Tensor]) -> Optimizer | None:
    old = snapshot.sidecar.optimizer
    if old is None:
        return None
    state = {name: dict(entries) for name, entries in old.state.items() if not record.without(name)}
    for key in sorted({key for entries in old.state.values() for key in entries}):
        aligned = {  # the state that has its parameter's shape: momentum and moments, not step counters
            name: to_tensor(entries[key])
            for name, entries in old.state.items()
            if name in state and key in entries and entries[key].shape == list(snapshot.weights[name].shape)
        }
        for name, tensor in apply_record(aligned, record).items():
            state[name][key] = to_array(tensor * masks[name] if name in masks else tensor)
    return Optimizer(name=old.name, groups=left(old, record).groups, state=state)


def left(optimizer: Optimizer, record: Surgery) -> Optimizer:
    """The optimizer of the parameters that are left after `record`."""
    groups = [replace(group, params=[n for n in group.params if not record.without(n)]) for group in optimizer.groups]
    return replace(optimizer, groups=groups)
