"""Batch-norm scales: the channels that a method may take by them, and the scales that it works on."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunecli.criteria import CRITERIA, bn_scale
from prunecli.errors import TargetError
from prunecli.methods.gradual.settings import Layers
from prunecli.methods.groups import Wanted, choose, score
from prunecli.methods.outcome import listed
from prunecli.progress import Say
from prunecli.surgery import Group, Structure
from prunecli.training import Run


def groups(run: Run, structure: Structure, layers: Layers) -> dict[str, Group]:
    """The groups of channels in scope whose every channel has a batch norm behind it, by key.

    Raises `UsageError` for a pattern that names no layer, `TargetError` when there is no such group.
    """
    chosen = choose(structure, Wanted(layers.only, layers.skip)).groups
    scored = scores(run.network, chosen)
    if not scored:
        name = run.training.method.name
        raise TargetError(
            f"--method {name}: no layer that can be cut has a batch norm behind it",
            "drop --only and --skip" if layers.only or layers.skip else "use --method sfp, rpgp or swd",
        )
    return {key: chosen[key] for key in scored}


def trained(run: Run, found: Mapping[str, Group], say: Say) -> dict[str, Group]:
    """Those of `found` whose scales are all trained, the others in a warning. Raises `TargetError` when none is."""
    fixed = {name for name, gamma in gammas(run.network).items() if not gamma.requires_grad}
    able = {key: group for key, group in found.items() if fixed.isdisjoint(m.tensor for m in group.members)}
    if not able:
        problem = f"--method {run.training.method.name}: no scale of a batch norm is trained"
        raise TargetError(problem, "unfreeze them, or use --method sfp")
    if stay := [key for key in found if key not in able]:
        say(f"warning: {listed(stay)} left as is: scales of batch norms behind are not trained")
    return able


def scores(network: nn.Module, found: Mapping[str, Group]) -> dict[str, list[float]]:
    """|gamma| of every channel by group, of several batch norms their mean; groups that lack one are left out."""
    read = {key: score(network, group, CRITERIA["bn-scale"], bn_scale, ranked=True) for key, group in found.items()}
    return {key: values for key, values in read.items() if values is not None}


def gammas(network: nn.Module) -> dict[str, nn.Parameter]:
    """The scales of all batch norms, by name."""
    norms = {n: m for n, m in network.named_modules() if isinstance(m, _BatchNorm) and m.weight is not None}
    return {f"{n}.weight": m.weight for n, m in norms.items()}
