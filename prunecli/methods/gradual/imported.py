"""What goes, from a file: a checkpoint that has lost it, or a JSON table of indices by layer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from prunecli import checkpoint as checkpoints
from prunecli.errors import TargetError, UsageError, nearest
from prunecli.methods.gradual.growing import Growth
from prunecli.methods.gradual.parts import Part, filter_parts, merged, weight_parts
from prunecli.methods.gradual.settings import Target
from prunecli.progress import silent
from prunecli.sidecar import Surgery
from prunecli.surgery.record import apply_record
from prunecli.surgery.structure import layer_of
from prunecli.training import Run


def importing_parts(run: Run, settings: Growth) -> list[Part]:
    """Every layer in scope, since a file names its layers itself: block outputs, shortcuts and linear layers too."""
    all_layers = Target(only=settings.only or ["*"], skip=settings.skip, sparsity=0.5)
    found = filter_parts if settings.structure == "filters" else weight_parts
    return found(run, all_layers, silent)


def imported(run: Run, parts: Sequence[Part], file: str) -> dict[str, Tensor]:
    """What is to go, by weight: filters, or weights, that are wholly gone in a checkpoint or that a table lists.

    Raises `UsageError` for a file of another network, `TargetError` where nothing or too much would go.
    """
    table = Path(file).suffix == ".json"
    gone = _listed(parts, file) if table else _lost(run, parts, file)
    whole = {name: torch.ones_like(w) for part in parts for name, w in part.weights.items()}
    chosen = {part.key: part.sums(gone) >= part.sums(whole) for part in parts}
    for part in parts:
        axes = part.group.whole_axes if part.group else [slice(None)]
        if any(bool(chosen[part.key][units].all()) for units in axes):
            raise TargetError(f"--method-arg indices={file}: nothing of {part.key} would be left", "leave one there")
    masks = merged(parts, chosen)
    for name in gone if table else ():
        listed = gone[name].bool()
        if bool((listed != masks.get(name, torch.zeros_like(listed))).any()):
            raise UsageError(
                f"--method-arg indices={file}: filters of {layer_of(name)} can only go together with those of others",
                "list the same ones for all layers that `report --structure` shows in its group",
            )
    if not masks:
        raise TargetError(
            f"--method-arg indices={file}: nothing of this network is gone there",
            "name a checkpoint that was cut, or masked with structure=weights",
        )
    return masks


def _listed(parts: Sequence[Part], file: str) -> dict[str, Tensor]:
    """1 for what the table lists, by weight: slices of the filters' axis, or flat positions."""
    where = f"--method-arg indices={file}"
    try:
        table = msgspec.convert(json.loads(Path(file).read_text(encoding="utf-8")), dict[str, list[int]])
    except (ValueError, msgspec.ValidationError) as error:
        hint = 'write {"layer1.0.conv1": [0, 3, 5]}, the filters that go; a checkpoint is named by its .safetensors'
        raise UsageError(f"{where}: {error}", hint) from None
    axes: dict[str, Any] = {layer_of(name): (name, None) for part in parts for name in part.weights}
    axes |= {layer_of(m.tensor): (m.tensor, m.axis) for part in parts for m in part.members}
    gone = {name: torch.zeros(w.shape, device=w.device) for part in parts for name, w in part.weights.items()}
    for layer, indices in table.items():
        if layer not in axes:
            raise UsageError(f"{where}: no layer {layer!r} that can be pruned", nearest(layer, axes))
        name, axis = axes[layer]
        slices = gone[name].view(-1) if axis is None else gone[name].movedim(axis, 0)
        if indices and not 0 <= min(indices) <= max(indices) < len(slices):
            raise UsageError(f"{where}: {layer} has indices 0 to {len(slices) - 1}", "is it of another network?")
        slices[indices] = 1.0
    return gone


def _lost(run: Run, parts: Sequence[Part], file: str) -> dict[str, Tensor]:
    """1 for what a checkpoint has lost of the same dense network, cut or masked, by weight as it is in the run."""
    other = checkpoints.load(file)
    names = [name for part in parts for name in part.weights]
    parameters = dict(run.network.named_parameters())
    dense = {}
    for name in dict.fromkeys(names):
        mask = other.sidecar.masks.get(name)
        shape = other.weights[name].shape if name in other.weights else ()
        kept = checkpoints.unpack_mask(mask).float() if mask else torch.ones(shape)
        for axis, slices in _cuts(other.sidecar.surgery, name).items():
            sizes = list(kept.shape)
            sizes[axis] = slices.of
            kept = torch.zeros(sizes).index_copy_(axis, torch.tensor(slices.kept), kept)
        expected = list(parameters[name].shape)
        for axis, slices in _cuts(run.cuts, name).items():
            expected[axis] = slices.of
        if list(kept.shape) != expected:
            raise UsageError(
                f"--method-arg indices={file}: {name} was of shape {list(kept.shape)} there, of {expected} here"
                if name in other.weights
                else f"--method-arg indices={file}: it has no weight {name}",
                "name a checkpoint of the same dense network",
            )
        dense[name] = kept
    return {name: 1 - kept.to(run.device) for name, kept in apply_record(dense, run.cuts).items()}


def _cuts(record: Surgery, name: str) -> dict[int, Any]:
    return {int(axis): record.index[number] for axis, number in record.axes.get(name, {}).items()}
