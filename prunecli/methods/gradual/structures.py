"""What sparse structure selection puts factors on: channels, groups of convolutions, whole residual branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from prunecli.errors import TargetError
from prunecli.methods.gradual import scales
from prunecli.methods.gradual.filters import rows
from prunecli.methods.gradual.filters import spread as along
from prunecli.methods.gradual.settings import Layers
from prunecli.methods.groups import Wanted, choose
from prunecli.methods.outcome import by_reason, left_alone, listed
from prunecli.progress import Say
from prunecli.surgery import Group, Plan, branches
from prunecli.surgery.branches import Branch, modules_of, scale_behind
from prunecli.surgery.graph import graph_of
from prunecli.surgery.structure import layer_of
from prunecli.surgery.twin import twin_of
from prunecli.surgery.within import tensors_in
from prunecli.training import Run

FLAG = "--method sss: --method-arg structures"


@dataclass(frozen=True)
class Scaled:
    """A layer whose output is multiplied by `count` factors, each on as many of its channels.

    `parameters` are its weight, which names it, and what else is multiplied with that.
    """

    parameters: tuple[str, ...]
    count: int
    branch: Branch | None = None

    @property
    def name(self) -> str:
        """The weight."""
        return self.parameters[0]

    @property
    def layer(self) -> str:
        """What a message calls it."""
        return self.branch.name if self.branch else layer_of(self.name)


def find(structures: str, run: Run, layers: Layers, say: Say) -> list[Scaled]:
    """Where factors go for these `structures`, in the scope that `layers` names.

    Raises `UsageError` for a pattern that names nothing, `TargetError` where the network has no such structure.
    """
    found = {"channels": _channels, "groups": _groups, "blocks": _blocks}[structures](run, layers, say)
    trained = {name for name, parameter in run.network.named_parameters() if parameter.requires_grad}
    frozen = [scaled.layer for scaled in found if not trained.issuperset(scaled.parameters)]
    if len(frozen) == len(found):
        raise TargetError(f"{FLAG}={structures}: {listed(frozen)} is not trained", "unfreeze its weights")
    if frozen:
        say(f"warning: {listed(frozen)} left as is: a factor on weights that are not trained has no gradient")
    return [scaled for scaled in found if trained.issuperset(scaled.parameters)]


def remove(scaled: Sequence[Scaled], factors: Mapping[str, Tensor], run: Run, layers: Layers, say: Say) -> None:
    """Take away for good what has factors of zero alone; the others are multiplied into the weights already."""
    found = [s.branch for s in scaled if s.branch and not bool(factors[s.name])]
    if found:
        say(f"{len(found)} of {len(scaled)} residual branches go: {', '.join(branch.name for branch in found)}")
        run.take_away(modules_of(found))
    if any(s.branch for s in scaled):
        if len(found) in (0, len(scaled)):
            say(f"warning: {'all' if found else 'no'} residual branches go: {'lower' if found else 'raise'} gamma")
        return
    structure, plan = run.structure(), Plan()
    dead: dict[str, Tensor] = {}
    for key, group in choose(structure, Wanted(layers.only, layers.skip)).groups.items():
        members = [member for member in group.members if member.tensor in factors]
        alive = torch.zeros(group.units + 1, dtype=torch.bool)
        for member in members:
            kept = spread(factors[member.tensor], member.unit) != 0
            alive[member.unit[kept.cpu()]] = True
        if members and not bool(alive[:-1].all()):
            dead[key] = ~alive[:-1]
    if fed := _still_read(run, [(structure.by_key[key], gone) for key, gone in dead.items()]):
        say(f"warning: {listed(fed)} left whole: what has no factor makes these channels, too, or reads them")
    if not dead:
        say("warning: no channel has factors of zero alone, nothing goes: raise gamma, or train longer")
    held = []
    for key, gone in dead.items():
        if key not in fed:
            needed = structure.by_key[key].needed((~gone).tolist())
            plan.kept[key] = sorted({*(~gone).nonzero()[:, 0].tolist(), *needed})
            held += [key] * (len(plan.kept[key]) > int((~gone).sum()))
    if held:
        say(f"warning: kept, as a layer never loses all: one unit of {listed(held)}")
    run.shrink(structure, plan)


def _still_read(run: Run, dead: Sequence[tuple[Group, Tensor]]) -> list[str]:
    """The keys of groups whose `dead` units, bool [units], reach the network's output: it changes without them."""
    twin, inputs = twin_of(run.network, None).eval(), run.examples()[1]
    parameters = dict(twin.named_parameters())
    devices = [x.device for x in inputs if x.is_cuda]
    found = []
    with torch.no_grad(), torch.random.fork_rng(devices):
        whole = [*tensors_in(twin(*inputs))]
        for group, gone in dead:
            makers = [m for m in group.members if (m.tensor, m.axis) in {*group.outputs}]
            before = {m.tensor: parameters[m.tensor].clone() for m in makers}
            for m in makers:
                mine = rows(m, gone.nonzero()[:, 0])
                parameters[m.tensor].masked_fill_(along(mine, m.axis, parameters[m.tensor]), 0)
            pairs = zip(whole, tensors_in(twin(*inputs)), strict=True)
            if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(a.abs().max())) for a, b in pairs):
                found.append(group.key)
            for name, values in before.items():
                parameters[name].copy_(values)
    return found


def spread(factor: Tensor, like: Tensor) -> Tensor:
    """Factors [n] as a tensor that broadcasts over a parameter, each for as many of its slices."""
    if len(factor) == 1 or factor.shape == like.shape:
        return factor
    return factor.repeat_interleave(len(like) // len(factor)).view(-1, *[1] * (like.ndim - 1))


def gathered(slopes: Tensor, count: int) -> Tensor:
    """The sums of what belongs to each of `count` factors: the gradient of `spread`."""
    return slopes if slopes.shape == (count,) else slopes.reshape(count, -1).sum(1)


def _channels(run: Run, layers: Layers, say: Say) -> list[Scaled]:
    groups = scales.groups(run, run.structure(), layers)
    behind = {member.tensor for group in groups.values() for member in group.members}
    parameters = dict(run.network.named_parameters())
    shifts = {name: f"{layer_of(name)}.bias" for name in scales.gammas(run.network) if name in behind}
    return [
        Scaled((name, shift) if shift in parameters else (name,), len(parameters[name]))
        for name, shift in shifts.items()
    ]


def _groups(run: Run, layers: Layers, say: Say) -> list[Scaled]:
    structure = run.structure()
    chosen = choose(structure, Wanted(layers.only, layers.skip)).groups
    modules = {layer: run.network.get_submodule(layer) for group in chosen.values() for layer in group.layers}
    graph = graph_of(run.network, *run.examples()[1])
    found, often = [], []
    for layer, module in modules.items():
        if structure.whole_groups.get(layer) and isinstance(module, _ConvNd):
            scale = scale_behind(graph, f"{layer}.weight")
            found += [Scaled(scale, module.groups)] if scale else []
            often += [] if scale else [layer]
    reason = f"{listed(often)} runs more than once" if often else "no layer in scope is a convolution in larger groups"
    if many := [layer for layer, whole in structure.whole_groups.items() if not whole]:
        reason = f"{listed(many)} loses channels of every group, as its groups are few and large, or were before a cut"
    if not found:
        raise TargetError(f"{FLAG}=groups: {reason}", "use structures=channels or structures=blocks")
    if often:
        say(f"warning: {listed(often)} left as is: it runs more than once")
    return found


def _blocks(run: Run, layers: Layers, say: Say) -> list[Scaled]:
    found = branches(run.network, *run.examples()[1])
    wanted, names = Wanted(layers.only, layers.skip), [branch.name for branch in found]
    if found:
        wanted.check(names)
    why = {branch.name: branch.reason for branch in found if branch.reason}
    for note in left_alone(why, wanted.named(names)):
        say(f"warning: {note}")
    able = [branch for branch in found if not branch.reason and wanted.why_not([branch.name]) is None]
    if not able:
        reasons = [f"{listed(branches)}: {reason}" for reason, branches in by_reason(why).items()]
        reason = reasons[0] if reasons else "all are skipped" if found else "the network adds none to a shortcut"
        raise TargetError(
            f"{FLAG}=blocks: no residual branch can be left out ({reason})", "use structures=channels instead"
        )
    for reason, those in by_reason(why).items():
        if not layers.only:
            say(f"warning: {listed(those)} left as is: {reason}")
    return [Scaled(branch.scale, 1, branch) for branch in able]
