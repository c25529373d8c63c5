"""Which filters a method works on, and how they go for good."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunecli.allocate.counts import GUARD
from prunecli.allocate.masks import lowest
from prunecli.allocate.patterns import share_of
from prunecli.criteria import Scorer, aligned
from prunecli.errors import TargetError
from prunecli.methods.gradual.settings import Target
from prunecli.methods.groups import Wanted, choose
from prunecli.methods.outcome import left_alone
from prunecli.methods.remarks import caveats
from prunecli.progress import Say
from prunecli.surgery import Group, Member, Plan, Structure
from prunecli.surgery.branches import projections
from prunecli.surgery.compensate import compensate
from prunecli.surgery.ledger import Axis
from prunecli.surgery.structure import layer_of
from prunecli.training import Run

_DIRECTIONS = (".parametrizations.weight.original1", ".weight_v")  # of weight norms, divided by their length


@dataclass(frozen=True)
class Filters:
    """The units of a group that convolutions make, of which `share` are to go.

    `projection` is the weight of a shortcut's 1 x 1 convolution among those that make them.
    """

    group: Group
    share: float
    projection: str | None = None

    @property
    def producers(self) -> list[Member]:
        """The axes whose slices are the filters, in the order of the layers' first calls."""
        found = {(m.tensor, m.axis): m for m in self.group.members}
        return [found[axis] for axis in self.group.outputs]

    @property
    def appended(self) -> list[str]:
        """The weights that make further channels too, which cannot be cut: those that a shortcut appends as zeros."""
        return [m.tensor for m in self.producers if bool((m.unit < 0).any())]

    @property
    def scorers(self) -> list[Member]:
        """Producers that make every unit once: the projection or, where there is none, the first (in a first stage the
        stem), then those that make units of their own."""
        seen: set[int] = {-1}
        found = []
        for member in sorted(self.producers, key=lambda m: m.tensor != self.projection):
            if not seen.issuperset(units := member.unit.tolist()):
                found.append(member)
                seen.update(units)
        return found


def filters(run: Run, settings: Target, say: Say, *, structure: Structure | None = None) -> dict[str, Filters]:
    """The groups in scope whose units are made by convolutions alone, by key; linear layers only where they are named.

    With the `structure` of a network that the run has cut already nothing is checked or said again, projections are not
    looked for, and nothing may be left. Else raises `UsageError` for a pattern that names no layer, `TargetError` when
    there is nothing to prune, or a weight norm, whose directions cannot be zeroed.
    """
    first, structure = structure is None, structure or run.structure()
    wanted = Wanted(settings.only, settings.skip, ratios=settings.ratios)
    choice = choose(structure, wanted, first=first)
    if first:
        for note in left_alone(choice.unpruned, wanted.named([*dict.fromkeys([*structure.order, *choice.unpruned])])):
            say(f"warning: {note}")
    parameters = dict(run.network.named_parameters())
    shortcuts = projections(run.network, *run.examples()[1]) if first else {}
    named = bool(settings.only or settings.ratios)
    found = {}
    for key, group in choice.groups.items():
        share = share_of(group.layers, settings.ratios) if settings.ratios else settings.sparsity
        made = all(name in parameters and (named or parameters[name].ndim > 2) for name in group.producers)
        if share and made:
            found[key] = Filters(group, share, _projection(group, shortcuts))
    for tensor in (m.tensor for f in found.values() for m in f.producers):
        if tensor.endswith(_DIRECTIONS):
            raise TargetError(
                f"{layer_of(tensor)} has a weight norm: of the direction of a filter that is zeroed nothing is left",
                "--skip it, or take the norm off with torch.nn.utils.parametrize.remove_parametrizations",
            )
    if not found and first:
        raise TargetError(
            "nothing to prune: no convolution that can be cut is to lose a share above 0",
            "ask for more; linear layers are pruned where they are named: --only 'fc*'",
        )
    return found


def _projection(group: Group, shortcuts: Mapping[str, set[str]]) -> str | None:
    """The 1 x 1 convolution among the producers that is added to a branch which ends with another of them."""
    return next((n for n in group.producers if not shortcuts.get(n, set()).isdisjoint(group.producers)), None)


def weakest(scores: Tensor, share: float) -> Tensor:
    """True for the floor(n share) lowest of `scores` [n], never for all of them; ties go by index."""
    return lowest(scores, min(math.floor(len(scores) * share + GUARD), len(scores) - 1))


def unit_scores(filters: Filters, values: Mapping[str, Tensor], score: Scorer) -> Tensor:
    """Scores [units] that `score` makes of what `values` has of each unit, by weight name, in the layer that scores it.

    Values are of a weight's shape, or one a channel of its output.
    """
    scores, known = torch.zeros(filters.group.units), torch.zeros(filters.group.units, dtype=torch.bool)
    for member in filters.scorers:
        found = values[member.tensor]
        if found.ndim == 1:  # a transposed convolution in groups makes several channels with each slice
            found = found.view(-1, len(member.unit)).sum(0)
        units, mine = aligned(found, member.axis, member.unit)
        new = ~known[units]
        scores[units[new]] = score(mine).cpu()[new]
        known[units] = True
    return scores


def rows(member: Member, units: Tensor) -> Tensor:
    """Which slices of a member's axis belong to `units`: bool [axis length]."""
    return torch.isin(member.unit, units.to(member.unit.device))


def spread(mask: Tensor, axis: int, like: Tensor) -> Tensor:
    """A mask of slices, [axis length], in a shape that broadcasts over the tensor."""
    shape = [1] * like.ndim
    shape[axis] = -1
    return mask.to(like.device).view(shape)


def slices(chosen: Iterable[tuple[Sequence[Member], Tensor]]) -> dict[Axis, Tensor]:
    """Which slices of members' axes belong to the units beside them: bool [axis length] by axis."""
    found: dict[Axis, Tensor] = {}
    for members, units in chosen:
        for member in members:
            axis, mine = (member.tensor, member.axis), rows(member, units)
            found[axis] = found[axis] | mine if axis in found else mine
    return found


def zero(run: Run, gone: Mapping[Axis, Tensor]) -> None:
    """Zero slices of weights and of the optimizer's state, and of buffers, by axis: bool [axis length]."""
    tensors = dict(run.network.named_parameters()) | dict(run.network.named_buffers())
    for (name, axis), mine in gone.items():
        tensor = tensors[name]
        kept = ~spread(mine, axis, tensor)
        state = [v for v in run.optimizer.state.get(tensor, {}).values() if isinstance(v, Tensor)]
        for values in [tensor.data, *(value for value in state if value.shape == tensor.shape)]:
            values.mul_(kept)


def remove(run: Run, gone: Mapping[Axis, Tensor], say: Say) -> None:
    """Take slices of weights away for good, by axis: bool [axis length].

    Units of which nothing is left are cut, and the constants that they add (a batch norm of zeros) folded into what
    reads them, which is not always exact (said); of other units the slices are masked. A group keeps one unit.
    """
    zero(run, gone)
    structure = run.structure()
    plan = Plan()
    removed: list[tuple[list[Member], Tensor]] = []
    for group in structure.groups:
        outputs = {*group.outputs}
        members = [m for m in group.members if (m.tensor, m.axis) in outputs]
        if not group.prunable or not any((m.tensor, m.axis) in gone for m in members):
            continue
        stays = [
            (m.unit, ~gone[m.tensor, m.axis].cpu() if (m.tensor, m.axis) in gone else m.unit >= 0) for m in members
        ]
        left = {u for unit, kept in stays for u in unit[kept].tolist()} - {-1}
        for member in group.members:  # something is left of every axis
            if -1 not in (units := member.unit.tolist()) and left.isdisjoint(units):
                left.add(units[0])
        plan.kept[group.key] = sorted(left or {0})
        removed.append((members, torch.tensor([u for u in range(group.units) if u not in {*plan.kept[group.key]}])))
    cut = slices(removed)
    parameters = dict(run.network.named_parameters())
    run.mask(
        {
            name: ~spread(mine, axis, parameters[name]).expand_as(parameters[name])
            for (name, axis), mine in gone.items()
            if bool((mine.cpu() & ~cut.get((name, axis), torch.zeros_like(mine.cpu()))).any())
        }
    )
    if any(len(kept) < structure.by_key[key].units for key, kept in plan.kept.items()):
        for note in caveats(compensate(run.network, structure, plan, run.examples())):
            say(f"warning: {note}")
        run.shrink(structure, plan)
