"""Folding constant units: the outputs of before where no place differs from another, and nearer to them elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from oracle import randomise
from torch import Tensor, nn

from prunecli import models
from prunecli.surgery import Plan, Structure, apply, trace
from prunecli.surgery.compensate import Folded, compensate

EXACT = 1e-9


def slimmed(network: nn.Module, share: float = 0.5) -> nn.Module:
    """A float64 copy in which a share of each batch norm's scales is zero, the shifts are not."""
    network = randomise(network).eval()
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.data[torch.rand(len(module.weight), generator=generator) < share] = 0
            assert (module.bias != 0).all()
    return network


def dead(network: nn.Module, structure: Structure) -> Plan:
    """The plan that removes the units whose every scale is zero, or whose every weight is, and keeps at least one."""
    tensors = network.state_dict()
    kept = {}
    for group in structure.groups:
        total = torch.zeros(group.units, dtype=torch.float64)
        scales = [m for m in group.members if m.role == "norm" and m.tensor.endswith(".weight")]
        for member in scales or [m for m in group.members if m.role == "out"]:
            slices = tensors[member.tensor].abs().movedim(member.axis, 0)
            sums = slices.reshape(len(slices), -1).sum(1)
            total.index_add_(0, member.unit[member.unit >= 0], sums[member.unit >= 0])
        if group.prunable:
            kept[group.key] = total.nonzero()[:, 0].tolist() or [0]
    return Plan(kept)


def errors(network: nn.Module, x: Tensor) -> tuple[float, float, Folded]:
    """Largest relative error of the output of what was cut, without and with compensation."""
    structure = trace(network, x)
    plan = dead(network, structure)
    assert any(len(kept) < structure.by_key[key].units for key, kept in plan.kept.items())
    plain, helped = copy.deepcopy(network), copy.deepcopy(network)
    folded = compensate(helped, structure, plan, [(scale * torch.randn_like(x),) for scale in (0.3, 1.0, 3.0)])
    with torch.no_grad():
        expected = network(x)
        same = helped(x)
        assert same.shape == expected.shape
        for cut in (plain, helped):
            apply(cut, structure, plan)
        found = [float((cut(x) - expected).abs().max() / expected.abs().max()) for cut in (plain, helped)]
    return found[0], found[1], folded


def classifier(activation: Callable[[], nn.Module]) -> nn.Module:
    """Biases with and without batch norm, batch norm without bias, a grouped convolution, pooling, a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), activation(),
        nn.Conv2d(16, 24, 3, bias=False), nn.BatchNorm2d(24), activation(),
        nn.Conv2d(24, 24, 3, groups=4), nn.BatchNorm2d(24), activation(), nn.MaxPool2d(2),
        nn.Conv2d(24, 12, 1, bias=False), nn.BatchNorm2d(12), activation(),
        nn.Flatten(), nn.Linear(12 * 25, 20), nn.BatchNorm1d(20), activation(), nn.Linear(20, 10),
    )  # fmt: skip


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Hardswish])
def test_without_padding_the_outputs_are_the_same(activation: Callable[[], nn.Module]) -> None:
    network = slimmed(classifier(activation))
    gone = added = 0
    for norm, groups in ((1, 1), (4, 4), (7, 4), (11, 1), (15, 1)):  # a unit is a channel of each group
        scale, value = network[norm].weight.view(groups, -1), activation()(network[norm].bias).view(groups, -1)
        constant = (scale == 0).all(0)
        gone += int(constant.sum())
        added += int((constant & (value != 0).any(0)).sum())
    plain, helped, folded = errors(network, torch.randn(2, 3, 16, 16).double())
    assert plain > 1e-3
    assert helped < EXACT
    assert (folded.removed, folded.constant, folded.folded) == (gone, added, added)
    assert added > 10
    assert not folded.approximate
    assert not folded.refused


def test_weights_of_zero_and_a_bias_are_constant_too() -> None:
    network = randomise(nn.Sequential(nn.Conv1d(2, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 6), nn.Linear(6, 3)))
    network[0].weight.data[::2] = 0
    network[3].weight.data[:2] = 0
    plain, helped, folded = errors(network, torch.randn(2, 2, 8).double())
    assert plain > 1e-3
    assert helped < EXACT
    assert (folded.removed, folded.folded) == (6, 6)


class Residual(nn.Module):
    """A sum of two branches: its units are constant where both are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(8, 12, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (8, 12, 12))
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.stem(x)).sigmoid()
        x = self.norms[1](self.left(x)) + self.norms[2](self.right(x))
        return self.fc(x.relu().mean((2, 3)))


def test_units_of_a_sum_are_constant_where_all_of_its_terms_are() -> None:
    network = slimmed(Residual(), 0.0)
    for norm, scales in zip(network.norms[1:], ([0, 1, 2], [1, 2, 3]), strict=True):
        norm.weight.data[scales] = 0
    _, helped, folded = errors(network, torch.randn(2, 3, 4, 4).double())
    assert (folded.removed, folded.folded) == (2, 2)
    assert helped < EXACT
    structure = trace(network, x := torch.randn(2, 3, 4, 4).double())
    plan = Plan({"left": [*range(4, 12)]})  # 0 and 3 are not constant: they go as they always did
    folded = compensate(network, structure, plan, [(x,), (2 * x,)])
    assert (folded.removed, folded.constant, folded.folded) == (4, 2, 2)


def test_padding_makes_it_approximate_and_that_is_said() -> None:
    network = slimmed(models.build("resnet20", {}), 0.3)
    plain, helped, folded = errors(network, torch.randn(2, 3, 32, 32).double())
    assert helped < plain / 5
    inner = [norm for name, norm in network.named_modules() if name.endswith(".bn1")]
    assert folded.removed == sum(int((norm.weight == 0).sum()) for norm in inner)  # no unit of a sum is constant
    added = sum(int(((norm.weight == 0) & (norm.bias > 0)).sum()) for norm in inner)
    assert folded.folded == folded.constant == added > 0
    assert folded.approximate
    assert {network.get_submodule(layer).padding for layer in folded.approximate} == {(1, 1)}
    assert all(0 < error < 2 for error in folded.approximate.values())


def test_a_depthwise_convolution_that_pads_hands_constants_on() -> None:
    """What the last convolution reads differs at the border, and is the same whatever the input."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 64, 3),
    )  # fmt: skip
    network = slimmed(network, 0.0)
    network[1].weight.data[:3], network[1].bias.data[:3], network[4].bias.data[:3] = 0, 1, 2
    x = torch.randn(2, 3, 8, 8).double()
    structure = trace(network, x)
    helped, plain, plan = copy.deepcopy(network), copy.deepcopy(network), Plan({"0": [3, 4, 5, 6, 7]})
    folded = compensate(helped, structure, plan, [(torch.randn_like(x),), (x,)])
    assert (folded.removed, folded.folded) == (3, 3)
    assert [*folded.approximate] == ["6"]
    for cut in (plain, helped):
        apply(cut, structure, plan)
    assert (helped(x) - network(x)).norm() < 0.5 * (plain(x) - network(x)).norm()


def test_what_pads_otherwise_than_with_zeros_is_exact() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"),
        nn.Flatten(), nn.Linear(6 * 36, 4),
    )  # fmt: skip
    _, helped, folded = errors(slimmed(network), torch.randn(2, 3, 8, 8).double())
    assert helped < EXACT
    assert folded.folded == folded.constant > 0
    assert not folded.approximate


class Awkward(nn.Module):
    """Layers that can take nothing up: without bias before a group norm, and one bias for two uses."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.other, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1, bias=shared)
        self.group, self.shared = nn.GroupNorm(2, 4), shared

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.norm(self.conv(x)).sigmoid())
        return y + self.last(self.norm(self.other(x)) ** 2) if self.shared else self.group(y)


@pytest.mark.parametrize(("shared", "why"), [(False, "no bias"), (True, "added elsewhere")])
def test_what_cannot_be_folded_is_said_and_left_as_it_was(shared: bool, why: str) -> None:
    network = slimmed(Awkward(shared))
    x = torch.randn(2, 3, 4, 4).double()
    structure = trace(network, x)
    before = copy.deepcopy(network.state_dict())
    folded = compensate(network, structure, dead(network, structure), [(x,), (2 * x,)])
    assert folded.constant > 0
    assert folded.folded == 0
    assert why in folded.refused["last"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


class Reader(nn.Module):
    """Reads constant units by a weight of its own, in ways that cannot be watched."""

    def __init__(self, beta: float | None) -> None:
        super().__init__()
        self.a, self.beta = nn.Linear(4, 8), beta
        self.read = nn.ParameterDict({"w": nn.Parameter(torch.randn(8, 5)), "b": nn.Parameter(torch.zeros(5))})

    def forward(self, x: Tensor) -> Tensor:
        y, w, b = self.a(x).relu(), self.read["w"], self.read["b"]
        return y @ w + b if self.beta is None else torch.addmm(b, y, w, beta=self.beta)


@pytest.mark.parametrize("beta", [None, 0.5])
def test_readers_that_are_not_watched_are_named(beta: float | None) -> None:
    network, x = Reader(beta), torch.randn(2, 4)
    with torch.no_grad():
        network.a.weight[:4], network.a.bias[:4] = 0, 1
    structure, expected = trace(network, x), network.read["b"].detach().clone()
    folded = compensate(network, structure, Plan({"a": [4, 5, 6, 7]}), [(x,), (torch.randn(2, 4),)])
    assert "read" in folded.refused
    assert folded.folded == 0
    assert torch.equal(network.read["b"], expected)


def test_the_network_stays_in_its_mode_and_its_tensors_are_not_written_to() -> None:
    """The memory may be that of a file: what changes gets memory of its own."""
    network = slimmed(classifier(nn.ReLU)).train()
    network[1].eval()
    values = {name: (tensor, tensor.detach().clone()) for name, tensor in network.state_dict().items()}
    x = torch.randn(2, 3, 16, 16).double()
    structure = trace(network, x)
    compensate(network, structure, dead(network, structure), [(x,), (2 * x,)])
    assert network.training
    assert not network[1].training
    assert all(torch.equal(tensor, before) for tensor, before in values.values())
    assert any(not torch.equal(t, values[name][0]) for name, t in network.state_dict().items())
