"""What the best-known other tool breaks, loses or passes over in silence, each right here or refused by name."""

from __future__ import annotations

import copy
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from handmade import FEATURES, IMAGE, TOKENS, Case, Net, between, check, conv, mlp, normed, parameter, pooled, simple
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from prunecli.surgery import Plan, apply, trace


def _separate(n: Net, x: Tensor) -> Tensor:
    q, k, v = n.q(x), n.k(x), n.v(x)
    return n.o((q @ k.mT).softmax(-1) @ v)


BROKEN_THERE = {
    "flip": Case(between(lambda x: x.flip(1)), IMAGE, {"a", "b"}),
    "channel shuffle": Case(normed(nn.ChannelShuffle(2)), IMAGE, {"a", "b"}),
    "separate queries, keys, values": Case(
        Net(_separate, q=nn.Linear(12, 8), k=nn.Linear(12, 8), v=nn.Linear(12, 6), o=nn.Linear(6, 4)),
        TOKENS, {"q", "k", "v"},
    ),
    "GLU": Case(normed(nn.Sequential(nn.Conv2d(8, 16, 1), nn.GLU(1))), IMAGE, {"a", "b", "norm.0"}),
    "pixel shuffle": Case(normed(nn.Sequential(nn.Conv2d(8, 32, 1), nn.PixelShuffle(2))), IMAGE, {"a", "b", "norm.0"}),
    "depthwise multiplier": Case(
        normed(nn.Sequential(nn.Conv2d(8, 24, 3, groups=8), nn.Conv2d(24, 8, 1))), IMAGE, {"a", "b", "norm.1"}
    ),
    "RMS norm": Case(mlp(nn.RMSNorm(8)), TOKENS, {"a"}, "rms_norm"),
    "weight norm": Case(normed(parametrizations.weight_norm(conv(8, 8))), IMAGE, {"a", "b", "norm"}, "norm", True),
    "input beside features": Case(
        Net(lambda n, x: pooled(n, n.b(torch.cat([x, n.a(x), x], 1))), a=conv(3, 8), b=conv(14, 6), fc=nn.Linear(6, 4)),
        IMAGE, {"a", "b"},
    ),
    "a detached branch": Case(
        Net(lambda n, x: pooled(n, n.b(y := n.a(x)) + n.c(y.detach())), a=conv(3, 8), b=conv(8, 6), c=conv(8, 6),
            fc=nn.Linear(6, 4)),
        IMAGE, {"a", "b", "c"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_THERE)
def test_broken_there_and_right_here(name: str) -> None:
    check(BROKEN_THERE[name])


def test_the_places_of_an_input_beside_features_are_the_right_ones() -> None:
    network = BROKEN_THERE["input beside features"].network
    structure = trace(network, IMAGE)
    (read,) = (m for m in structure.group_of("a").members if m.tensor == "b.weight" and m.axis == 1)
    assert read.unit.tolist() == [-1] * 3 + [*range(8)] + [-1] * 3


# name -> network, part of the reason for which `a` stays
REFUSED = {
    "roll": (between(lambda x: x.roll(3, 1)), "roll"),
    "static slice": (between(lambda x: x[:, :4], 4), "slice"),
    "static slices that part an axis": (between(lambda x: x[:, :4] * x[:, 4:], 4), "slice"),
    "static split": (between(lambda x: torch.cat(x.split([3, 5], 1)[::-1], 1)), "split_with_sizes"),
    "hard-coded view": (Net(lambda n, x: n.fc(n.a(x).view(-1, 288)), a=conv(3, 8), fc=nn.Linear(288, 4)), "view"),
    "own output": (Net(lambda n, x: n.a(x), a=conv(3, 8)), "outputs of the network"),
    "added to the input": (
        Net(lambda n, x: pooled(n, n.b(n.a(x) + x)), a=conv(3, 3), b=conv(3, 6), fc=nn.Linear(6, 4)), "add",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_refused_by_name(name: str) -> None:
    network, reason = REFUSED[name]
    structure = trace(network, IMAGE)
    assert not structure.group_of("a").prunable
    assert reason in structure.frozen["a"]


def test_no_layer_is_left_unpruned_without_a_word() -> None:
    """Every layer with weights makes units that may go, or is named with a reason, or only hands channels on."""
    for network, inputs in [
        *((case.network, case.inputs) for case in BROKEN_THERE.values()), *((net, IMAGE) for net, _ in REFUSED.values())
    ]:  # fmt: skip
        structure = trace(network, inputs)
        cut = {layer for group in structure.groups if group.prunable for layer in group.layers}
        assert {*structure.order} == cut | {layer for layer in structure.frozen if layer in structure.order}
        assert all(structure.frozen.values())


@pytest.mark.parametrize("train", [False, True])
def test_heads_that_exist_only_in_train_mode(train: bool) -> None:
    def run(n: Net, x: Tensor) -> Any:
        y = n.a(x)
        main = pooled(n, n.b(y))
        return {"main": main, "aux": n.aux(y.mean((2, 3)))} if n.training else {"main": main}

    parts = {"a": conv(3, 8), "b": conv(8, 6), "aux": nn.Linear(8, 5), "fc": nn.Linear(6, 4)}
    network = Net(run, **parts).train(train)
    structure = check(Case(network, IMAGE, {"a", "b"}))
    assert ("aux.weight", 1) in {(m.tensor, m.axis) for m in structure.group_of("a").members}
    assert all(module.training == train for module in network.modules())


def test_modes_hooks_and_buffers_are_left_as_they_were() -> None:
    network = Net(
        lambda n, x: pooled(n, n.b(n.norm(n.a(x)))), a=conv(3, 8), norm=nn.BatchNorm2d(8), b=conv(8, 6),
        fc=nn.Linear(6, 4),
    )  # fmt: skip
    network.train()
    network.norm.eval()
    network.fc.eval()
    calls: list[str] = []
    network.a.register_forward_hook(lambda *_: calls.append("a"))
    modes = [module.training for module in network.modules()]
    hooks = [dict(module._forward_hooks) for module in network.modules()]
    state = copy.deepcopy(network.state_dict())
    for inputs in (IMAGE, IMAGE[:1].expand(2, -1, -1, -1)):
        trace(network, inputs, train=True)
    assert [module.training for module in network.modules()] == modes
    assert [dict(module._forward_hooks) for module in network.modules()] == hooks
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    apply(network, trace(network, IMAGE), Plan({"a": [0, 5]}))
    assert [module.training for module in network.modules()] == modes
    calls.clear()
    network(IMAGE)
    assert calls == ["a"]


def test_tied_weights_stay_tied_and_frozen_ones_frozen() -> None:
    network = Net(
        lambda n, x: n.fc(F.relu(n.c(F.relu(n.b(n.a(x)))))), a=nn.Linear(12, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 8),
        fc=nn.Linear(8, 4),
    )  # fmt: skip
    network.c.weight = network.b.weight
    network.a.weight.requires_grad_(False)
    check(Case(network, FEATURES, {"a", "b"}))
    apply(network, trace(network, FEATURES), Plan({"a": [1, 2, 6]}))
    assert network.b.weight is network.c.weight
    assert (network.a.weight.shape, network.a.weight.requires_grad) == ((3, 12), False)
    assert network.b.weight.requires_grad


def test_a_module_under_two_names_is_cut_once() -> None:
    network = Net(
        lambda n, x: n.fc(F.relu(n.again(F.relu(n.b(n.a(x)))))), a=nn.Linear(12, 8), b=nn.Linear(8, 8),
        fc=nn.Linear(8, 4),
    )  # fmt: skip
    network.again = network.b
    check(Case(network, FEATURES, {"a", "b"}))
    apply(network, trace(network, FEATURES), Plan({"a": [1, 2, 6]}))
    assert network.again is network.b
    assert network.b.weight.shape == (3, 3)


def _momenta(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in optimizer.state[parameter].items() if value.ndim}


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_the_state_of_the_optimizer_is_kept(kind: Any) -> None:
    network = simple(F.relu)
    optimizer = kind(network.parameters(), lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    network(IMAGE).square().sum().backward()
    optimizer.step()
    before = {name: _momenta(optimizer, p) for name, p in network.named_parameters()}
    apply(network, trace(network, IMAGE), Plan({"a": [1, 4, 6]}), optimizer=optimizer)
    for key, value in _momenta(optimizer, network.b.weight).items():
        assert torch.equal(value, before["b.weight"][key][:, [1, 4, 6]])
    for key, value in _momenta(optimizer, network.a.weight).items():
        assert torch.equal(value, before["a.weight"][key][[1, 4, 6]])
    assert all(before["a.weight"])


def test_several_inputs_and_nested_ones() -> None:
    def run(n: Net, batch: dict[str, Any], scale: Tensor) -> dict[str, Any]:
        x = n.a(batch["tokens"]) + n.b(batch["more"][0])
        return {"scores": [n.fc(F.relu(x))], "scale": scale * n.c(F.relu(x)).sum()}

    parts = {name: nn.Linear(12, 8) for name in "ab"}
    network = Net(run, **parts, c=nn.Linear(8, 6), fc=nn.Linear(8, 4))
    check(Case(network, ({"tokens": TOKENS, "more": [TOKENS + 1]}, torch.tensor(2.0)), {"a", "b", "c"}))


def test_bare_parameters_beside_layers() -> None:
    network = Net(
        lambda n, x: n.fc(n.scale * n.a(x) + n.shift), a=nn.Linear(12, 8), scale=parameter(8), shift=parameter(1, 1, 8),
        fc=nn.Linear(8, 4),
    )  # fmt: skip
    structure = oracle.check_dead(network, (TOKENS,))
    assert {m.tensor for m in structure.group_of("a").members} == {"a.weight", "a.bias", "scale", "shift", "fc.weight"}
