"""Bad input to surgery: an error that names the layer, and not a bit of network, optimizer or masks changed."""

from __future__ import annotations

import copy
from threading import Lock
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from handmade import IMAGE, TOKENS, Net, conv, pooled, simple
from torch import Tensor, nn

from prunecli.errors import PruneError, TargetError, UsageError
from prunecli.surgery import Plan, apply, trace, verify


def _state(network: nn.Module, optimizer: torch.optim.Optimizer, masks: dict[str, Tensor]) -> Any:
    """Everything that a refused cut must leave: values, identities, attributes."""
    return (
        copy.deepcopy(network.state_dict()), [id(p) for p in network.parameters()], str(network),
        [p.grad.clone() for p in network.parameters() if p.grad is not None],
        copy.deepcopy(optimizer.state_dict()), {name: mask.clone() for name, mask in masks.items()},
    )  # fmt: skip


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


@pytest.fixture
def network() -> Net:
    return simple(F.relu)


@pytest.fixture
def optimizer(network: Net) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(network.parameters())
    network(IMAGE).sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("kept", "error", "words"),
    [
        ({"b": []}, TargetError, "every channel of layer 'b'"),
        ({"b": [0, 6]}, UsageError, "'b'"),
        ({"b": [-1, 2]}, UsageError, "'b'"),
        ({"b": [3, 1]}, UsageError, "'b'"),
        ({"b": [2, 2]}, UsageError, "'b'"),
        ({"c": [0]}, UsageError, "'c'"),
        ({"fc": [0]}, UsageError, "'fc'"),
    ],
)
def test_bad_plans(
    network: Net, optimizer: torch.optim.Optimizer, kept: dict[str, list[int]], error: type[PruneError], words: str
) -> None:
    masks = {"a.weight": network.a.weight > 0}
    structure, before = trace(network, IMAGE), _state(network, optimizer, masks)
    with pytest.raises(error, match=words) as raised:
        apply(network, structure, Plan({"a": [0], **kept}), optimizer=optimizer, along=[masks])
    assert raised.value.hint
    assert _same(before, _state(network, optimizer, masks))


def test_masks_of_other_shapes(network: Net, optimizer: torch.optim.Optimizer) -> None:
    for masks in ({"a.weight": torch.ones(2)}, {"other": torch.ones(2)}):
        structure, before = trace(network, IMAGE), _state(network, optimizer, masks)
        with pytest.raises(UsageError, match=next(iter(masks))):
            apply(network, structure, Plan({"a": [0]}), optimizer=optimizer, along=[masks])
        assert _same(before, _state(network, optimizer, masks))


def test_masks_that_are_no_tensors(network: Net) -> None:
    masks: dict[str, Any] = {"a.weight": network.a.weight.tolist()}
    with pytest.raises(UsageError, match=r"with a\.weight is no tensor"):
        apply(network, trace(network, IMAGE), Plan({"a": [0]}), along=[masks])
    assert network.a.weight.shape[0] == 8


def test_structures_and_plans_of_other_networks(network: Net, optimizer: torch.optim.Optimizer) -> None:
    wider = Net(network._run, a=conv(3, 9), b=conv(9, 6), fc=nn.Linear(6, 4))
    other = Net(lambda n, x: pooled(n, n.first(x)), first=conv(3, 8), fc=nn.Linear(8, 4))
    before = _state(network, optimizer, {})
    for structure, plan, words in (
        (trace(wider, IMAGE), Plan({"a": [0]}), r"a\.weight"),
        (trace(other, IMAGE), Plan({"first": [0]}), r"first\.weight"),
        (trace(network, IMAGE), Plan({"first": [0]}), "first"),
        (trace(network, IMAGE), Plan({"a": [0, 8]}), "'a'"),
    ):
        with pytest.raises(UsageError, match=words):
            verify(network, structure, plan, IMAGE)
        with pytest.raises(UsageError, match=words):
            apply(network, structure, plan, optimizer=optimizer)
        assert _same(before, _state(network, optimizer, {}))


def _raises(n: Net, x: Tensor) -> Tensor:
    raise KeyError("no such entry")


UNTRACEABLE = {
    "channels": (simple(F.relu), (IMAGE[:, :2],), "conv2d in a"),
    "dimensions": (simple(F.relu), (TOKENS[0],), "in a"),
    "a later layer": (
        Net(lambda n, x: n.fc(n.a(x).flatten(1)), a=conv(3, 8), fc=nn.Linear(9, 4)), (IMAGE,), "linear in fc",
    ),
    "too few inputs": (simple(F.relu), (), "missing 1 required"),
    "too many inputs": (simple(F.relu), (IMAGE, IMAGE), "positional argument"),
    "no tensor": (simple(F.relu), ("image",), "in a"),
    "an error of its own": (Net(_raises, a=conv(3, 8)), (IMAGE,), "KeyError"),
    "values": (Net(lambda n, x: n.a(x) * torch.equal(x, x), a=conv(3, 8)), (IMAGE,), "equal in the network itself"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_networks_that_do_not_run(name: str) -> None:
    network, inputs, words = UNTRACEABLE[name]
    state, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    with pytest.raises(UsageError, match="cannot be traced") as raised:
        trace(network, *inputs)
    assert words in raised.value.message
    assert raised.value.hint
    assert _same(state, network.state_dict())
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("kept", [torch.tensor([0, 2]), (0, 2), range(2), [0.0, 2.0], ["0"], [True, False], None])
def test_plans_of_something_else_than_numbers(network: Net, kept: Any) -> None:
    with pytest.raises(UsageError, match="'a' is no list of whole numbers"):
        apply(network, trace(network, IMAGE), Plan({"a": kept}))


def test_structures_of_a_part_of_the_network(network: Net) -> None:
    larger = Net(lambda n, x: n.last(network._run(n, x)), **dict(network.named_children()), last=nn.Linear(4, 4))
    with pytest.raises(UsageError, match=r"knows nothing of the network's last\."):
        apply(larger, trace(network, IMAGE), Plan({"a": [0]}))


def test_optimizers_that_cannot_be_cut(network: Net) -> None:
    flat = torch.optim.LBFGS(network.parameters())
    network(IMAGE).square().mean().backward()
    flat.step(lambda: network(IMAGE).square().mean().item())
    other = torch.optim.SGD(nn.Linear(3, 3).parameters(), lr=0.1)
    for optimizer, words in ((flat, r"LBFGS keeps .* of a\.weight"), (other, "drives no parameter")):
        before = _state(network, optimizer, {})
        with pytest.raises(UsageError, match=words):
            apply(network, trace(network, IMAGE), Plan({"a": [0]}), optimizer=optimizer)
        assert _same(before, _state(network, optimizer, {}))


class Holding(nn.Module):
    def __init__(self, part: Any) -> None:
        super().__init__()
        self.a, self.part = conv(3, 8), part


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (nn.Sequential(conv(3, 8), torch.jit.ScriptModule()), "'1' is TorchScript"),
        (nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten()), "'0' has parameters without a shape"),
        (Holding(Lock()), "cannot be copied: TypeError: cannot pickle"),
        (len, "nn.Module"),
    ],
    ids=["script", "lazy", "lock", "function"],
)
def test_what_cannot_be_cut_at_all(network: Any, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        trace(network, IMAGE)
    assert words in raised.value.message + raised.value.hint
