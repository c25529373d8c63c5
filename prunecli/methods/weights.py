"""Unstructured pruning of a checkpoint: scores, counts, masks; weights and optimizer state are masked at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import torch
from torch import Tensor

from prunecli import checkpoint as checkpoints
from prunecli import measure
from prunecli.allocate import masks
from prunecli.allocate.counts import apportion, keep_at_least
from prunecli.allocate.patterns import share_of
from prunecli.allocate.widths import Scope
from prunecli.checkpoint import Checkpoint
from prunecli.criteria import CRITERIA, bound
from prunecli.errors import TargetError
from prunecli.methods import METHODS
from prunecli.methods.groups import Wanted
from prunecli.methods.outcome import Outcome, Row, listed
from prunecli.methods.targets import Target
from prunecli.sidecar import Optimizer

Tensors = Literal["all", "conv"]


@dataclass(frozen=True)
class Weights:
    """How weights are chosen: a method in `METHODS`, where scores are ranked, of which layers.

    `tensors`: weights of all layers that multiply, or of convolutions alone; biases and normalisations never. `limit`:
    the largest share that a layer may lose.
    """

    method: str
    scope: Scope
    tensors: Tensors = "all"
    limit: float | None = None
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    seed: int = 0


def prune(checkpoint: Checkpoint, how: Weights, target: Target) -> Outcome:
    """Mask weights of `checkpoint` until the target is met, what is masked already included.

    Shares are of the weights that may be masked, so rounds need nothing but rising targets. Raises `TargetError` when
    the target cannot be met.
    """
    sidecar = checkpoint.sidecar
    wanted = Wanted(how.only, how.skip, ratios=target.ratios)
    chosen = _choose(checkpoint, how.tensors, wanted)
    old = {name: checkpoints.unpack_mask(mask) for name, mask in sidecar.masks.items()}
    scorer = bound(CRITERIA[METHODS[how.method].criterion], how.seed)
    scores = {name: scorer(checkpoint.weights[name].detach()) for name in chosen}
    gone = {name: int((~old[name]).sum()) if name in old else 0 for name in chosen}
    least = {name: keep_at_least(size, how.limit) for name, size in chosen.items()}
    counts = _counts(target, how, checkpoint, chosen, least)
    if isinstance(counts, int):
        new, held = masks.by_rank(scores, old, counts, least)
    else:
        new, held = masks.by_tensor(scores, old, counts, least)
    if held and target.is_budget and how.scope == "local":
        raise TargetError(
            f"--max-params: {_layer(held[0])} would keep less than {least[held[0]]:,} of its weights",
            "use --scope global",
        )
    rows = [
        Row(name, [_layer(name)], "weights", size - gone[name], int(new[name].sum())) for name, size in chosen.items()
    ]
    layers = [*dict.fromkeys(_layer(name) for name in sidecar.cost.positions)]
    cut = {_layer(name) for name in chosen}
    elsewhere = {layer: f"--tensors {how.tensors}" for layer in wanted.in_scope(layers) if layer not in cut}
    spared = {row.layers[0]: "the target leaves it all its weights" for row in rows if row.after == row.before}
    notes = []
    for name in held:
        why = "one weight: a layer never loses all"
        notes.append(f"{name} keeps {why if least[name] == 1 else f'{least[name]:,} weights: --max-layer-sparsity'}")
    asked = counts if isinstance(counts, int) else sum(counts.values())
    if sum(gone.values()) > asked:
        notes.append(f"{sum(gone.values()):,} weights were masked before, more than the {asked:,} asked for")
    return Outcome(_masked(checkpoint, old | new), rows, notes, elsewhere | spared, wanted.named([*elsewhere]))


def _layer(tensor: str) -> str:
    return tensor.rpartition(".")[0] or tensor


def _choose(checkpoint: Checkpoint, tensors: str, wanted: Wanted) -> dict[str, int]:
    """Sizes of the weights that may be masked, in the order in which they act.

    These are what multiplies: the tensors that have a MAC count. Raises `TargetError` when nothing is left.
    """
    weights = checkpoint.weights
    able = [name for name in checkpoint.sidecar.cost.positions if name in weights and weights[name].ndim > 1]
    wanted.check([_layer(name) for name in able])
    chosen = {
        name: weights[name].numel()
        for name in able
        if (tensors == "all" or weights[name].ndim > 2) and wanted.why_not([_layer(name)]) is None
    }
    if not chosen:
        conv = " with --tensors conv" if tensors == "conv" else ""
        raise TargetError(
            f"nothing to prune: {wanted.leaves('no weight to mask')}{conv}",
            f"weights are in {listed([_layer(name) for name in able])}",
        )
    return chosen


def _counts(
    target: Target, how: Weights, checkpoint: Checkpoint, chosen: Mapping[str, int], least: Mapping[str, int]
) -> int | dict[str, int]:
    """How many weights are to be masked in the end: in all, or of each tensor; `least` of each stay."""
    rounding, whole, most = (
        METHODS[how.method].rounding,
        sum(chosen.values()),
        sum(chosen.values()) - sum(least.values()),
    )
    if target.params is not None:
        shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
        total = measure.totals(checkpoint.sidecar.cost, shapes, {}).params
        elsewhere = sum(
            math.prod(mask.shape) - mask.kept for name, mask in checkpoint.sidecar.masks.items() if name not in chosen
        )
        count = max(0, total - elsewhere - math.floor(target.params))
        if count > most:
            raise TargetError(
                f"--max-params {target.params:,.0f} cannot be met: {total - elsewhere - most:,} stay",
                "raise the budget, or " + ("mask more layers" if how.limit is None else "raise --max-layer-sparsity"),
            )
        return count if how.scope == "global" else apportion(count, chosen)
    if how.scope == "global" and not target.ratios:
        count = whole - rounding(whole, target.share or 0.0)
        if count > most:
            raise TargetError(
                f"--sparsity {target.share:g}: only {most:,} of {whole:,} weights can go",
                f"ask for at most --sparsity {math.floor(most / whole * 1e4) / 1e4:g}",
            )
        return count
    shares = {
        name: (share_of([_layer(name)], target.ratios) if target.ratios else target.share) or 0.0 for name in chosen
    }
    return {name: size - rounding(size, shares[name]) for name, size in chosen.items()}


def _masked(checkpoint: Checkpoint, new: Mapping[str, Tensor]) -> Checkpoint:
    sidecar = checkpoint.sidecar
    new = {name: mask for name, mask in new.items() if not bool(mask.all())}
    weights = {
        name: torch.where(new[name], tensor, 0) if name in new else tensor
        for name, tensor in checkpoint.weights.items()
    }
    sidecar = msgspec.structs.replace(
        sidecar,
        masks={name: checkpoints.pack_mask(new[name]) for name in weights if name in new},
        optimizer=_masked_state(sidecar.optimizer, new) if sidecar.optimizer else None,
    )
    return Checkpoint(weights, sidecar, checkpoint.path, checkpoint.sha256)


def _masked_state(optimizer: Optimizer, new: Mapping[str, Tensor]) -> Optimizer:
    """The optimizer with zeros where weights are masked: stale momentum would move them again."""
    state = {
        name: {
            key: checkpoints.to_array(torch.where(new[name], checkpoints.to_tensor(array), 0))
            if name in new and list(array.shape) == list(new[name].shape)
            else array
            for key, array in arrays.items()
        }
        for name, arrays in optimizer.state.items()
    }
    return msgspec.structs.replace(optimizer, state=state)
