"""Structured pruning of a checkpoint: scores, widths, a plan, the cut."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor, nn

from prunecli import checkpoint as checkpoints
from prunecli import measure, surgery
from prunecli.allocate import widths
from prunecli.allocate.patterns import share_of
from prunecli.checkpoint import Checkpoint
from prunecli.criteria import CRITERIA, bound
from prunecli.errors import TargetError
from prunecli.methods import METHODS
from prunecli.methods.groups import Wanted, choose, score
from prunecli.methods.outcome import Outcome, Row
from prunecli.methods.targets import Target
from prunecli.sidecar import Cost
from prunecli.surgery import Group, Plan, Structure
from prunecli.training import optimizer as optimizers


@dataclass(frozen=True)
class Units:
    """How units are chosen: a method in `METHODS`, where scores are ranked, multiples of widths, patterns of layers."""

    method: str
    scope: widths.Scope
    round_to: int = 1
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    seed: int = 0


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
    what there is. Raises `TargetError` when the target cannot be met, or the network does not follow its widths.
    """
    network = checkpoints.build(checkpoint, trust=trust)
    example = torch.zeros(2, *checkpoint.sidecar.cost.input)  # two, for batch norms in train mode
    structure = surgery.trace(network, example)
    wanted = Wanted(how.only, how.skip, target.ratios)
    chosen = choose(structure, wanted)
    scores, notes = _scores(network, chosen.groups, how)
    sizes = {key: (whole or {}).get(key, len(values)) for key, values in scores.items()}
    if target.is_budget:
        allocation = _within(target, scores, how, structure, checkpoint.sidecar.cost)
    else:
        allocation = _shares(target, scores, how, sizes, chosen.groups)
    rows = [
        Row(g.key, g.layers, "units", len(g.members), g.units, allocation.widths.get(g.key, g.units))
        for g in structure.groups
        if g.units
    ]
    notes = [*chosen.notes, *notes, *_remarks(chosen.groups, allocation, wanted)]
    plan = _plan(scores, allocation.widths)
    surgery.verify(network, structure, plan, example)
    cut = _cut(checkpoint, network, structure, plan, example)
    before, left = checkpoint.sidecar.cost.other_macs, cut.sidecar.cost.other_macs
    if target.macs is not None and left < before:
        notes.append(
            f"--max-macs counted {before:,} MACs of products of activations, of which the cut left {left:,}: a larger "
            "network would fit"
        )
    return Outcome(cut, rows, notes)


def _scores(network: nn.Module, groups: Mapping[str, Group], how: Units) -> tuple[dict[str, list[float]], list[str]]:
    criterion = CRITERIA[METHODS[how.method].criterion]
    scorer = bound(criterion, how.seed)
    found = {key: score(network, g, criterion, scorer, ranked=how.scope == "global") for key, g in groups.items()}
    scores = {key: values for key, values in found.items() if values is not None}
    missing = [key for key, values in found.items() if values is None]
    if not scores:
        raise TargetError(f"--method {how.method}: no layer has a batch norm behind it", "use --method l1")
    return scores, [f"{key} not pruned: no batch norm behind it" for key in missing]


def _shares(
    target: Target, scores: widths.Scores, how: Units, sizes: Mapping[str, int], groups: Mapping[str, Group]
) -> widths.Allocation:
    """Widths that remove the target's share: of each layer, by the table, or of all units."""
    rounding = METHODS[how.method].rounding
    if how.scope == "global" and target.share is not None:
        allocation = widths.by_rank(scores, target.share, sizes, rounding)
    else:
        table = {k: share_of(groups[k].layers, target.ratios) if target.ratios else target.share for k in scores}
        allocation = widths.by_share(scores, {k: share or 0.0 for k, share in table.items()}, sizes, rounding)
    return widths.Allocation(widths.rounded(allocation.widths, scores, how.round_to), allocation.guarded)


def _within(target: Target, scores: widths.Scores, how: Units, structure: Structure, cost: Cost) -> widths.Allocation:
    """Widths of the largest network within the target's budget."""

    def fits(kept: dict[str, int]) -> bool:
        sums = measure.totals(cost, structure.shapes(_plan(scores, kept)), {})
        return (target.macs is None or sums.macs <= target.macs) and (
            target.params is None or sums.params <= target.params
        )

    path = widths.path(scores, how.scope, how.round_to)
    found = widths.largest(path, scores, fits)
    if found is None:
        least = measure.totals(cost, structure.shapes(_plan(scores, widths.after(path, scores))), {})
        asked = [f"--max-macs {target.macs:,.0f}"] if target.macs is not None else []
        asked += [f"--max-params {target.params:,.0f}"] if target.params is not None else []
        hint = "raise the budget" + (", or lower --round-to" if how.round_to > 1 else ", or prune more layers")
        if target.macs is not None and cost.other_macs:
            hint += f"; {cost.other_macs:,} MACs of products of activations count as they are"
        raise TargetError(
            f"{' and '.join(asked)} cannot be met: the smallest network has {least.macs:,} MACs and "
            f"{least.params:,} parameters",
            hint,
        )
    return widths.Allocation(found, [])


def _plan(scores: widths.Scores, kept: Mapping[str, int]) -> Plan:
    return Plan({key: widths.select(scores[key], width) for key, width in kept.items() if width < len(scores[key])})


def _remarks(groups: Mapping[str, Group], allocation: widths.Allocation, wanted: Wanted) -> list[str]:
    """What the user should know about layers: guarded, named but untouched, changed beyond the removal."""
    cut = {key for key, width in allocation.widths.items() if width < groups[key].units}
    notes = [f"{key} keeps one unit: a layer never loses all" for key in allocation.guarded]
    for key, group in groups.items():
        if key not in cut and wanted.named(group.layers) and share_of(group.layers, wanted.ratios) != 0.0:
            notes.append(f"{key} named but not pruned: the target leaves it all its {group.units} units")
        if key in cut and group.changes_function:
            notes.append(f"{key}: the cut changes the function, {group.changes_function}")
    return notes


def _cut(checkpoint: Checkpoint, network: nn.Module, structure: Structure, plan: Plan, example: Tensor) -> Checkpoint:
    old = checkpoint.sidecar
    optimizer = optimizers.build(old.optimizer, network) if old.optimizer else None
    masks = {name: checkpoints.unpack_mask(mask) for name, mask in old.masks.items()}
    record = surgery.apply(network, structure, plan, optimizer=optimizer, masks=masks, record=old.surgery)
    sidecar = msgspec.structs.replace(
        old,
        surgery=record,
        masks={name: checkpoints.pack_mask(mask) for name, mask in masks.items()},
        optimizer=optimizers.capture(optimizer, network) if optimizer else None,
        cost=measure.cost(network, example),
    )
    weights = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
    return Checkpoint(weights, sidecar, checkpoint.path, checkpoint.sha256)
