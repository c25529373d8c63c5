"""What must hold for any network and any plan."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import missing
import oracle
import torch
from random_networks import Network, Program, inputs_of
from torch import Tensor, nn

from prunecli.errors import TargetError
from prunecli.sidecar import Surgery
from prunecli.surgery import Plan, Structure, apply, replay, trace, verify


@dataclass(frozen=True)
class Outcome:
    """A network that was cut: how, and what of it; `refused` says why `verify` turned the plan down."""

    network: nn.Module
    structure: Structure
    plan: Plan
    cut: nn.Module
    record: Surgery
    refused: str | None = None


def random_plan(structure: Structure, seed: int) -> Plan:
    """Most groups lose a random share of their units, some nothing; of every third network one group alone does."""
    pick = random.Random(seed)
    groups = [group for group in structure.groups if group.prunable and pick.random() < 0.8]
    if seed % 3 == 0 and groups:
        groups = [pick.choice(groups)]
    return Plan({g.key: sorted(pick.sample(range(g.units), pick.randint(1, g.units))) for g in groups})


def check(program: Program, seed: int) -> Outcome:
    """Trace, plan, cut and compare in both modes; raises AssertionError for whatever does not hold."""
    network = oracle.randomise(Network(program), seed)
    for number, parameter in enumerate(network.parameters()):
        parameter.requires_grad_(number % 3 > 0)
    inputs, others = inputs_of(program, 2), inputs_of(program, 3, seed=1)
    before, modes = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()]
    structure = trace(network, *inputs, heads=bool(seed % 2))
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items()), "the trace changed values"
    assert [m.training for m in network.modules()] == modes, "the trace changed the mode"
    check_reasons(network, structure)
    plan = random_plan(structure, seed)
    try:
        verify(network, structure, plan, *inputs)
    except TargetError as error:
        return Outcome(network, structure, plan, network, Surgery(), str(error))
    cut, record = cut_along(network, structure, plan)
    assert structure.shapes(plan) == {name: tuple(t.shape) for name, t in cut.state_dict().items()}
    again = copy.deepcopy(network)
    replay(again, record)
    assert str(again) == str(cut)
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in cut.state_dict().items()), "the record differs"
    if program.counts:  # what the cut network computes with its own widths can not be said of the whole one
        for train in (False, True):
            cut.train(train)(*others)
        plan = Plan({key: kept for key, kept in plan.kept.items() if not structure.by_key[key].changes_function})
        cut = copy.deepcopy(network)
        record = apply(cut, structure, plan)
    mixed = missing.compare(network, structure, plan, cut, others)
    said = {key for key, kept in plan.kept.items() if structure.by_key[key].changes_function} & lost(structure, plan)
    assert bool(mixed) == bool(said), f"{mixed or 'nothing'} mixes what was cut, and the groups that say so are {said}"
    if program.silent:
        check_dead(network, structure, Plan({key: kept for key, kept in plan.kept.items() if key not in said}), others)
    return Outcome(network, structure, plan, cut, record)


def cut_along(network: nn.Module, structure: Structure, plan: Plan) -> tuple[nn.Module, Surgery]:
    """A cut copy and its record; gradients, momentum and scores, twice, three and four times the weights, stay so."""
    cut = copy.deepcopy(network)
    before = list(cut.parameters())
    optimizer = torch.optim.SGD(before, 0.1, momentum=0.9)
    for parameter in before:
        parameter.grad = 2 * parameter.detach()
        optimizer.state[parameter]["momentum_buffer"] = 3 * parameter.detach()
    scores = {name: 4 * tensor for name, tensor in cut.state_dict().items()}
    record = apply(cut, structure, plan, optimizer=optimizer, along=[scores])
    for one, other, dense in zip(before, cut.parameters(), network.parameters(), strict=True):
        assert one is other
        assert one.requires_grad == dense.requires_grad
        assert torch.equal(one.grad, 2 * one)
        assert torch.equal(optimizer.state[one]["momentum_buffer"], 3 * one)
        one.grad = None
    assert all(torch.equal(scores[name], 4 * tensor) for name, tensor in cut.state_dict().items())
    return cut, record


def lost(structure: Structure, plan: Plan) -> set[str]:
    """Groups that lose anything."""
    return {key for key, kept in plan.kept.items() if len(kept) < structure.by_key[key].units}


def check_dead(network: nn.Module, structure: Structure, plan: Plan, inputs: tuple[Tensor, ...]) -> None:
    """Removing units of zero weights, biases, scales, shifts and running means changes nothing, in either mode."""
    dead = copy.deepcopy(network)
    oracle.zero(dead, structure, plan, ("out", "norm", "other"))
    cut = copy.deepcopy(dead)
    apply(cut, structure, plan)
    for train in (False, True):
        oracle.same(dead.train(train), cut.train(train), inputs)


def check_reasons(network: nn.Module, structure: Structure) -> None:
    """Every layer that makes units can be cut or says why not."""
    prunable = {layer for group in structure.groups if group.prunable for layer in group.layers}
    assert all(structure.frozen.values())
    assert not prunable & {*structure.frozen}
    named = prunable | {*structure.frozen}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and getattr(module, "groups", 1) == 1:
            tensor = structure.aliases.get(f"{name}.weight", f"{name}.weight")
            owner = tensor.removesuffix(".weight")
            assert {owner, f"{name}.parametrizations.weight"} & named, f"not a word of {name}"
