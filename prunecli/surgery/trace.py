"""The trace: a run of a network on the meta device, with labels riding along, tells which slices go together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from inspect import unwrap
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunecli.errors import TargetError, UsageError
from prunecli.sidecar import Surgery
from prunecli.surgery import shrink
from prunecli.surgery.attributes import cut_groups
from prunecli.surgery.call import labels_of
from prunecli.surgery.functions import SizeMode
from prunecli.surgery.grouping import never_called, structure_of
from prunecli.surgery.ledger import FIXED, Ledger, ValuesAskedError
from prunecli.surgery.mode import LabelMode, label
from prunecli.surgery.sizes import follow_attributes
from prunecli.surgery.structure import Plan, Structure
from prunecli.surgery.trial import Trial, trial_plan
from prunecli.surgery.twin import META, inputs_on, is_plain, twin_of
from prunecli.surgery.within import tensors_in

_WITHOUT_VALUES = "its code needs values there, of which a trace knows only those asked for by x.item() or `if x`"
_OF_EVERY_MODULE = vars(nn.Module()).keys()


def trace(
    network: nn.Module, *inputs: Any, train: bool = False, heads: bool = False, record: Surgery | None = None
) -> Structure:
    """Which slices of which parameters and buffers can be cut together; the network is left as it was.

    A copy runs on the meta device, without values, in eval mode; and once more in train mode if `train`, or if it runs
    there on these inputs and its code asks for the mode or layers were never called, so that what happens only there is
    seen. A network that asks for values runs once with its own weights instead. Then a copy with half of every group
    cut off runs, and whatever does not follow the cut is fixed, with the reason. Attention loses the same positions of
    every head or, if `heads`, whole heads. A convolution of few large groups loses the same positions of every group,
    any other whole groups; what `record` says was cut before goes on as it began, whatever its groups are by now.
    Raises UsageError, naming the layer, when the network does not run on these inputs or cannot be cut at all.
    """
    _check(network)
    ledger = _whole(network, inputs, heads, train, cut_groups(network, record or Surgery()))
    while True:
        structure = structure_of(network, ledger, ledger.components())
        plan = trial_plan(structure)
        broken = _broken(network, inputs, structure, plan) if plan.kept else []
        if not broken:
            return structure
        for nodes, why in broken:
            _fix_groups(structure, nodes, why)


def verify(network: nn.Module, structure: Structure, plan: Plan, *inputs: Any) -> None:
    """Run a copy of the network cut to `plan`. Raises TargetError where it does not follow.

    The trace has tried one cut; code that compares widths may yet take another way where two of them happen to meet.
    Raises UsageError for a plan or structure of another network.
    """
    shrink.check(structure, network)
    for _, why in _broken(network, inputs, structure, plan):
        raise TargetError(f"these widths cannot be cut: {why}", "ask for other widths, or --skip that layer")


def _check(network: nn.Module) -> None:
    """Is this a network whose modules and parameters can be changed?"""
    if not isinstance(network, nn.Module):
        raise UsageError(f"a {type(network).__name__} is no network that can be cut", "give an nn.Module")
    for name, module in network.named_modules():
        where = f"layer {name!r}" if name else "the network"
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(f"{where} is TorchScript, which cannot be cut", "cut the network that it was made of")
        if any(is_lazy(tensor) for tensor in module.parameters(recurse=False)):
            raise UsageError(f"{where} has parameters without a shape", "run the network on a batch first")


def _whole(
    network: nn.Module, inputs: tuple[Any, ...], heads: bool, train: bool, whole_groups: dict[str, bool]
) -> Ledger:
    """The ledger of the network as it is."""
    try:
        return _run_on(META, network, inputs, Ledger(heads=heads, whole_groups=whole_groups), train)
    except ValuesAskedError:
        return _run_on(None, network, inputs, Ledger(heads=heads, whole_groups=whole_groups), train)


def _asks_for_mode(network: nn.Module) -> bool:
    """Does the network's own code look at `training`? Known layers do nothing there that concerns channels."""
    kinds = {kind for module in network.modules() for kind in type(module).__mro__}
    own = [vars(kind).values() for kind in kinds if not kind.__module__.startswith(("torch.", "torchvision.ops."))]
    functions = (_undecorated(value) for values in own for value in values)
    return any(_names(function.__code__, "training") for function in functions if isinstance(function, FunctionType))


def _undecorated(value: Any) -> Any:
    """The function that a decorator, a property or a static method holds; anything else as it is."""
    value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    return unwrap(value) if isinstance(value, FunctionType) else value


def _names(code: CodeType, name: str) -> bool:
    return name in code.co_names or any(_names(part, name) for part in code.co_consts if isinstance(part, CodeType))


def _run_on(
    device: torch.device | None, network: nn.Module, inputs: tuple[Any, ...], ledger: Ledger, train: bool
) -> Ledger:
    for mode in (False, True):
        if mode and not train and not never_called(network, ledger) and not _asks_for_mode(network):
            break
        answers, known = len(ledger.answers), {*ledger.roles}
        with torch.inference_mode():
            twin = twin_of(network, device).train(mode)
            failures = [why for _, why in _run(twin, inputs_on(inputs, device), ledger)]
        if failures and mode and not train:  # it needs other inputs there, such as targets, and nobody asked for it
            del ledger.answers[answers:]
            for axis in (a for a, role in ledger.roles.items() if role == "out" and a not in known):
                ledger.fix(ledger.axes[axis], "it runs in train mode alone, where the network fails on these inputs")
            break
        for why in failures:
            hint = _WITHOUT_VALUES if "meta" in why.lower() else "give example inputs on which the network runs"
            raise UsageError(f"the network cannot be traced: {why}", hint)
        ledger.modes += (mode,)
    return ledger


def _broken(network: nn.Module, inputs: tuple[Any, ...], structure: Structure, plan: Plan) -> list[tuple[Tensor, str]]:
    """Nodes that do not follow the cut, and why."""
    trial = Trial(structure, plan)
    for train in trial.modes:
        with torch.inference_mode():
            twin = twin_of(network, META).train(train)
            shrink.cut(twin, structure, trial.keep, trial.counted)
            failures = _run(twin, inputs_on(inputs, META), trial)
        if failures:
            return [*trial.broken, *failures]
    return trial.broken


def _run(twin: nn.Module, inputs: tuple[Any, ...], ledger: Ledger) -> Iterable[tuple[Tensor, str]]:
    """Run a copy of the network and fill the ledger. Returns, if it fails, which nodes reached the failure, and why."""
    label(twin, ledger)
    follow_attributes(twin, ledger)
    mode = LabelMode(ledger)
    mode.follow(twin)
    try:
        with mode, SizeMode(ledger, lambda: mode.layer):
            output = twin(*inputs)
    except ValuesAskedError:
        raise
    except Exception as error:  # of any kind: it is the network's own code that runs
        return [mode.failure(error)]
    for tensor in tensors_in(output):
        for layer in labels_of(tensor).layers:
            ledger.fix(layer, "its channels are outputs of the network")
    for attribute, tensor in _kept(twin):
        for layer in labels_of(tensor).layers:
            ledger.fix(layer, f"the network keeps its channels in {attribute}")
    return []


def _kept(twin: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a run has left in attributes of modules, for whoever reads it there; not weights made of other weights."""
    for name, module in twin.named_modules():
        for attribute, value in vars(module).items():
            if attribute in _OF_EVERY_MODULE or is_plain(value):
                continue
            for tensor in tensors_in(value):
                if not labels_of(tensor).own:
                    yield f"{name}.{attribute}".lstrip("."), tensor


def _fix_groups(structure: Structure, nodes: Tensor, why: str) -> None:
    """Fix every group that has a unit among these nodes, or all of them when none has."""
    ledger, parts = structure.ledger, structure.parts
    units = {*parts.unit[nodes.reshape(-1)].tolist()}
    prunable = [group for group in structure.groups if group.prunable]
    owned = [{u for axis in g.outputs for u in parts.unit[ledger.axes[axis]].tolist()} - {FIXED} for g in prunable]
    reached = [group for group, own in zip(prunable, owned, strict=True) if units & own]
    for group in reached or prunable:
        for axis in group.outputs:
            ledger.fix(ledger.axes[axis], why)
