"""Which filters a method works on, and how they go for good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunecli.allocate.patterns import share_of
from prunecli.errors import TargetError
from prunecli.methods.gradual.settings import Target
from prunecli.methods.groups import Wanted, choose
from prunecli.methods.outcome import left_alone
from prunecli.progress import Say
from prunecli.surgery import Group, Member, Plan, Structure
from prunecli.surgery.compensate import compensate
from prunecli.surgery.ledger import Axis
from prunecli.training import Run


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
    def shared(self) -> bool:
        """Do several convolutions make these units, as in a residual stage?"""
        return len(self.group.outputs) > 1

    @property
    def leading(self) -> Member:
        """The projection or, where there is none, the first producer (in a first stage the stem)."""
        return next((m for m in self.producers if m.tensor == self.projection), self.producers[0])


def filters(run: Run, settings: Target, say: Say) -> dict[str, Filters]:
    """The groups in scope whose units are made by convolutions alone, by key; linear layers only where they are named.

    Raises `UsageError` for a pattern that names no layer, `TargetError` when nothing is left.
    """
    structure = run.structure()
    wanted = Wanted(settings.only, settings.skip, ratios=settings.ratios)
    choice = choose(structure, wanted)
    for note in left_alone(choice.unpruned, wanted.named([*dict.fromkeys([*structure.order, *choice.unpruned])])):
        say(f"warning: {note}")
    parameters = dict(run.network.named_parameters())
    named = bool(settings.only or settings.ratios)
    found = {}
    for key, group in choice.groups.items():
        share = share_of(group.layers, settings.ratios) if settings.ratios else settings.sparsity
        if share and (named or all(parameters[name].ndim > 2 for name in group.producers)):
            found[key] = Filters(group, share, _projection(structure, group, parameters))
    if not found:
        raise TargetError("nothing to prune: no convolution is left", "drop --skip, or name layers: --only 'fc*'")
    return found


def _projection(structure: Structure, group: Group, parameters: Mapping[str, nn.Parameter]) -> str | None:
    """The 1 x 1 convolution among several producers that reads what a layer outside of them reads too."""
    makers = {*group.producers}
    for name in group.producers if len(makers) > 1 else ():
        pointwise = parameters[name].ndim > 2 and parameters[name][0, 0].numel() == 1
        for other in structure.groups if pointwise else ():
            read_by = {member.tensor for member in other.members if member.role == "in"}
            if name in read_by and read_by - makers:
                return name
    return None


def rows(member: Member, units: Tensor) -> Tensor:
    """Which slices of a member's axis belong to `units`: bool [axis length]."""
    return torch.isin(member.unit, units.to(member.unit.device))


def spread(mask: Tensor, axis: int, like: Tensor) -> Tensor:
    """A mask of slices, [axis length], in a shape that broadcasts over the tensor."""
    shape = [1] * like.ndim
    shape[axis] = -1
    return mask.to(like.device).view(shape)


def zero(run: Run, gone: Mapping[Axis, Tensor]) -> None:
    """Zero slices of weights, and of the optimizer's state, by axis: bool [axis length]."""
    parameters = dict(run.network.named_parameters())
    for (name, axis), slices in gone.items():
        parameter = parameters[name]
        kept = ~spread(slices, axis, parameter)
        state = [v for v in run.optimizer.state.get(parameter, {}).values() if isinstance(v, Tensor)]
        for tensor in [parameter.data, *(value for value in state if value.shape == parameter.shape)]:
            tensor.mul_(kept)


def remove(run: Run, gone: Mapping[Axis, Tensor]) -> None:
    """Take slices of weights away for good, by axis: bool [axis length].

    Units of which nothing is left are cut, and the constants that they add (a batch norm of zeros) folded into what
    reads them; of other units the slices are masked. A group keeps one unit.
    """
    zero(run, gone)
    structure = run.structure()
    plan, cut = Plan(), dict[Axis, Tensor]()
    for group in structure.groups:
        members = [m for m in group.members if (m.tensor, m.axis) in {*group.outputs}]
        if not group.prunable or not all((m.tensor, m.axis) in gone for m in members):
            continue
        left = {u for m in members for u in m.unit[~gone[m.tensor, m.axis].cpu()].tolist()} - {-1}
        plan.kept[group.key] = sorted(left) or [0]
        removed = torch.tensor([u for u in range(group.units) if u not in {*plan.kept[group.key]}])
        cut |= {(m.tensor, m.axis): rows(m, removed) for m in members}
    parameters = dict(run.network.named_parameters())
    run.mask(
        {
            name: ~spread(slices, axis, parameters[name]).expand_as(parameters[name])
            for (name, axis), slices in gone.items()
            if bool((slices.cpu() & ~cut.get((name, axis), torch.zeros_like(slices.cpu()))).any())
        }
    )
    if any(len(kept) < structure.by_key[key].units for key, kept in plan.kept.items()):
        compensate(run.network, structure, plan, run.examples())
        run.shrink(structure, plan)
