"""Structured pruning of a checkpoint: scores, widths, a plan, the cut."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import msgspec
import torch
from torch import Tensor, nn

from prunecli import checkpoint as checkpoints
from prunecli import measure, surgery
from prunecli.checkpoint import Checkpoint
from prunecli.criteria import CRITERIA, bound
from prunecli.errors import TargetError, UsageError
from prunecli.methods import METHODS
from prunecli.methods.groups import Choice, Wanted, choose, require_heads, score
from prunecli.methods.outcome import Axis, Outcome, Row
from prunecli.methods.reach import candidates, reach
from prunecli.methods.remarks import caveats, left_whole, remarks, shortfall
from prunecli.methods.targets import Target, Units
from prunecli.surgery import Group, Plan, Structure
from prunecli.surgery.compensate import compensate
from prunecli.training import optimizer as optimizers

LAST = [math.inf]  # the scores of a group that earlier rounds have left one unit, which stays


def prune(
    checkpoint: Checkpoint,
    how: Units,
    target: Target,
    *,
    whole: Mapping[str, int] | None = None,
    trust: Collection[str] = (),
) -> Outcome:
    """Cut `checkpoint` to `target`: weights, masks and optimizer state.

    `whole` holds the groups' sizes before the first of several rounds, which shares are of; without it, they are of
    what there is. Raises `TargetError` when the target cannot be met, or the network does not follow its widths, and
    `UsageError` when it cannot be traced.
    """
    network = checkpoints.build(checkpoint, trust=trust)
    example = torch.zeros(2, *checkpoint.sidecar.cost.input)  # two, for batch norms in train mode
    record = checkpoint.sidecar.surgery
    try:
        structure = surgery.trace(network, example, heads=how.heads, record=record)
    except UsageError as error:  # its hint is for people who have the network in memory
        raise UsageError(error.message, "mask weights instead: --method magnitude") from error
    if how.heads and whole is None:
        require_heads(structure, surgery.trace(network, example, record=record))
    wanted = Wanted(how.only, how.skip, how.skip_inputs, target.ratios)
    chosen = choose(structure, wanted, first=whole is None)
    spent = [key for key in whole or {} if key not in structure.by_key or not structure.by_key[key].units]
    found = candidates(chosen.groups, _scores(network, chosen.groups, how) | dict.fromkeys(spent, LAST), how, whole)
    if whole is None and target.is_share and all(len(choices) == 1 for choices in found.choices.values()):
        raise TargetError(
            f"nothing to prune: {how.limits} leaves no layer a width below its own",
            how.looser or "mask weights: --method magnitude",
        )
    allocation = reach(target, found, how, structure, checkpoint.sidecar.cost)
    plan = found.plan(allocation.widths)
    surgery.verify(network, structure, plan, example)
    folded = compensate(network, structure, plan, _runs(example)) if how.fold else None
    whole_groups = left_whole(found, chosen.groups, target, allocation, how)
    unpruned = _unpruned(chosen, whole_groups, wanted, plan)
    notes = remarks(found, allocation, how) + (caveats(folded) if folded else [])
    rows = _rows(structure, plan, chosen.why | whole_groups)
    cut = _cut(checkpoint, network, structure, plan, example)
    before, left = checkpoint.sidecar.cost.other_macs, cut.sidecar.cost.other_macs
    if target.macs is not None and left < before:
        notes.append(
            f"--max-macs counted {before:,} MACs of products of activations, of which the cut left {left:,}: a larger "
            "network would fit"
        )
    named = wanted.named([*dict.fromkeys([*structure.order, *unpruned])])
    return Outcome(cut, rows, notes, unpruned, named, shortfall(found, allocation, how), folded)


def _runs(example: Tensor) -> list[tuple[Tensor]]:
    """Inputs that have nothing in common, small and large."""
    generator = torch.Generator().manual_seed(0)
    return [(scale * torch.randn(example.shape, generator=generator),) for scale in (0.3, 1.0, 3.0)]


def _scores(network: nn.Module, groups: Mapping[str, Group], how: Units) -> dict[str, list[float]]:
    criterion = CRITERIA[METHODS[how.method].criterion]
    scorer = bound(criterion, how.seed)
    found = {key: score(network, g, criterion, scorer, ranked=how.scope == "global") for key, g in groups.items()}
    scores = {key: values for key, values in found.items() if values is not None}
    if groups and not scores:
        norm = criterion.reads == "norm"
        lacking, other = ("a batch norm behind it", "l1") if norm else ("weights that make its channels", "bn-scale")
        raise TargetError(f"--method {how.method}: no layer has {lacking}", f"use --method {other}")
    return scores


def _unpruned(chosen: Choice, whole: Mapping[str, str], wanted: Wanted, plan: Plan) -> dict[str, str]:
    """Why layers in scope lose nothing; `whole` says why of groups that were chosen."""
    cut = {layer for key in plan.kept for layer in chosen.groups[key].layers}
    layers = {la: why for key, why in whole.items() for la in wanted.in_scope(chosen.groups[key].layers)}
    return {layer: why for layer, why in (chosen.unpruned | layers).items() if layer not in cut}


def _rows(structure: Structure, plan: Plan, why: Mapping[str, str]) -> list[Row]:
    shapes = structure.shapes(plan)
    return [
        Row(
            group.key,
            group.layers,
            "units",
            group.units,
            len(plan.kept.get(group.key, range(group.units))),
            [Axis(m.tensor, m.axis, m.role, len(m.unit), shapes[m.tensor][m.axis]) for m in group.members],
            why.get(group.key) if group.key not in plan.kept else None,
        )
        for group in structure.groups
        if group.units
    ]


def _cut(checkpoint: Checkpoint, network: nn.Module, structure: Structure, plan: Plan, example: Tensor) -> Checkpoint:
    old = checkpoint.sidecar
    optimizer = optimizers.build(old.optimizer, network) if old.optimizer else None
    masks = {name: checkpoints.unpack_mask(mask) for name, mask in old.masks.items()}
    record = surgery.apply(network, structure, plan, optimizer=optimizer, along=[masks], record=old.surgery)
    sidecar = msgspec.structs.replace(
        old,
        surgery=record,
        masks={name: checkpoints.pack_mask(mask) for name, mask in masks.items()},
        optimizer=optimizers.capture(optimizer, network) if optimizer else None,
        cost=measure.cost(network, example),
    )
    weights = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
    return Checkpoint(weights, sidecar, checkpoint.path, checkpoint.sha256)
