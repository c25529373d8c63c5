"""Which weights and which filters a method works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from prunecli.errors import TargetError
from prunecli.methods.gradual.settings import Layers
from prunecli.methods.groups import Wanted
from prunecli.methods.outcome import listed
from prunecli.progress import Say
from prunecli.surgery.structure import layer_of
from prunecli.training import Run


def weights(run: Run, layers: Layers, say: Say, *, biases: bool = False) -> dict[str, nn.Parameter]:
    """The weights that multiply (no normalisation) of the layers in scope, in the order in which they act.

    With `biases`, those of these layers follow. What is not trained is left out, with a warning.

    Raises `UsageError` for a pattern that names no layer, `TargetError` when nothing is left.
    """
    parameters = dict(run.network.named_parameters())
    able = [name for name in run.cost.positions if name in parameters and parameters[name].ndim > 1]
    wanted = Wanted(layers.only, layers.skip)
    wanted.check([layer_of(name) for name in able])
    chosen = {name: parameters[name] for name in able if wanted.why_not([layer_of(name)]) is None}
    if not chosen:
        raise TargetError(
            f"nothing to prune: {wanted.leaves('no weight')}",
            f"weights are in {listed([layer_of(name) for name in able])}",
        )
    chosen = trained(chosen, say)
    added = [f"{layer_of(name)}.bias" for name in chosen] if biases else []
    return chosen | {n: parameters[n] for n in added if n in parameters and parameters[n].requires_grad}


def trained(found: Mapping[str, nn.Parameter], say: Say) -> dict[str, nn.Parameter]:
    """Those of `found` that are trained, the others in a warning: no penalty moves them.

    Raises `TargetError` when none is.
    """
    able = {name: parameter for name, parameter in found.items() if parameter.requires_grad}
    leave([layer_of(name) for name in found if name not in able], bool(able), say)
    return able


def leave(frozen: Sequence[str], others: bool, say: Say) -> None:
    """Say what stays as it, or what it goes together with, is not trained. Raises `TargetError` without `others`."""
    if not others:
        raise TargetError(f"nothing to prune: {listed(frozen)} not trained", "unfreeze weights, or use --method sfp")
    if frozen:
        say(f"warning: {listed(frozen)} left as is: not trained")


def is_new(run: Run) -> bool:
    """Did the run begin with weights that nobody has trained? To be asked at its beginning."""
    steps = run.source.sidecar.history
    return bool(steps) and steps[-1].command == "train" and not steps[-1].options.get("init")
