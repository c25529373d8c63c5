"""Traces, plans, cuts and their records: what users of the engine rely on."""

from __future__ import annotations

import copy
import dataclasses

import oracle
import pytest
import torch
from torch import Tensor, nn

from prunecli.errors import DamagedError, TargetError, UsageError
from prunecli.sidecar import Sidecar, Surgery
from prunecli.surgery import Plan, apply, apply_record, replay, trace


class Small(nn.Module):
    """Two convolutions with batch norm around a residual addition, flattened into two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.fc1 = nn.Linear(8 * 16, 6)
        self.fc2 = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.conv3(x + self.conv2(x)))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


@pytest.fixture
def network() -> Small:
    torch.manual_seed(0)
    return Small()


X = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(3))


def test_groups_members_and_roles(network: Small) -> None:
    structure = trace(network, X)
    group = structure.group_of("conv2")
    assert (group.key, group.units, group.producers) == ("conv1", 8, ["conv1.weight", "conv2.weight"])
    members = {(m.tensor, m.axis): (m.role, m.unit.tolist()) for m in group.members}
    every = list(range(8))
    assert members[("conv1.weight", 0)] == ("out", every)
    assert members[("conv1.bias", 0)] == ("other", every)
    assert members[("bn1.running_var", 0)] == ("norm", every)
    assert members[("conv2.weight", 1)] == ("in", every)
    assert members[("conv3.weight", 0)] == ("other", every)
    assert members[("fc1.weight", 1)] == ("in", [c for c in every for _ in range(16)])
    assert structure.order == ["conv1", "conv2", "fc1", "fc2"]
    assert structure.frozen == {"fc2": "its channels are outputs of the network"}


def test_trace_leaves_the_network_alone(network: Small) -> None:
    network.train()
    network.conv2.eval()
    before, modes = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()]
    trace(network, X, train=True)
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(hook for m in network.modules() for hook in (m._forward_hooks, m._forward_pre_hooks))


def test_shapes_and_widths_of_a_plan_are_those_of_the_cut(network: Small) -> None:
    structure = trace(network, X)
    plan = Plan({"conv1": [1, 4, 6], "fc1": [0, 5]})
    shapes, widths = structure.shapes(plan), structure.widths(plan)
    apply(network, structure, plan)
    assert shapes == {name: tuple(t.shape) for name, t in network.state_dict().items()}
    assert widths == {"conv1": 3, "conv2": 3, "fc1": 2, "fc2": 4}
    assert network.conv3.groups == network.conv3.in_channels == network.bn1.num_features == 3
    assert (network.fc1.in_features, network.fc1.out_features) == (48, 2)
    assert network(X).shape == (5, 4)


def test_kept_slices_are_those_of_the_plan(network: Small) -> None:
    before = copy.deepcopy(network.state_dict())
    apply(network, trace(network, X), Plan({"conv1": [2, 7]}))
    after = network.state_dict()
    assert torch.equal(after["conv2.weight"], before["conv2.weight"][[2, 7]][:, [2, 7]])
    assert torch.equal(after["fc1.weight"], before["fc1.weight"].view(6, 8, 16)[:, [2, 7]].reshape(6, 32))
    assert torch.equal(after["fc2.weight"], before["fc2.weight"])


def test_rows_and_columns_of_moments_are_cut_along(network: Small) -> None:
    optimizer = torch.optim.Adafactor(network.parameters())
    network(X).square().sum().backward()
    optimizer.step()
    before = optimizer.state[network.fc1.weight]["row_var"].clone()
    apply(network, trace(network, X), Plan({"fc1": [1, 4]}), optimizer=optimizer)
    assert torch.equal(optimizer.state[network.fc1.weight]["row_var"], before[[1, 4]])
    network(X).square().sum().backward()
    optimizer.step()


def test_a_loss_of_before_the_cut_that_is_still_held_does_not_matter(network: Small) -> None:
    loss = network(X).square().sum()
    loss.backward()
    apply(network, trace(network, X), Plan({"conv1": [0, 2], "fc1": [1]}))
    network.zero_grad()
    network(X).square().sum().backward()
    assert network.conv1.weight.grad is not None
    assert network.conv1.weight.grad.shape == network.conv1.weight.shape
    assert loss.requires_grad


def test_successive_cuts_compose_into_one_record(network: Small) -> None:
    dense = copy.deepcopy(network)
    record = apply(network, trace(network, X), Plan({"conv1": [0, 2, 3, 5, 7], "fc1": [1, 2, 3]}))
    record = apply(network, trace(network, X), Plan({"conv1": [1, 3, 4]}), record=record)
    number = record.axes["conv2.weight"]["0"]
    assert (record.index[number].of, record.index[number].kept) == (8, [2, 5, 7])
    assert len(record.index) == 3  # channels, columns of fc1, rows of fc1
    assert record.attributes["conv3"] == {"in_channels": 3, "out_channels": 3, "groups": 3}
    state = apply_record(dense.state_dict(), record)
    replay(dense, record)
    for name, tensor in network.state_dict().items():
        assert torch.equal(state[name], tensor)
        assert torch.equal(dense.state_dict()[name], tensor)
    network.eval()
    dense.eval()
    assert torch.equal(network(X), dense(X))
    assert str(network) == str(dense)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize(("channels", "groups", "cuts"), [(16, 4, [[0, 2, 3], [0, 1]]), (32, 4, [[0, 5, 7], [1]])])
def test_a_grouped_convolution_is_cut_on_as_it_was_before(
    kind: type[nn.Conv2d | nn.ConvTranspose2d], channels: int, groups: int, cuts: list[list[int]]
) -> None:
    """Few large groups lose positions, and have few by then; others go as a whole, and have more positions then."""
    network = nn.Sequential(
        nn.Conv2d(3, channels, 1), kind(channels, channels, 3, groups=groups), nn.Conv2d(channels, 2, 1)
    )
    record = Surgery()
    before = trace(network, X).by_key["0"]
    for kept in cuts:
        structure = trace(network, X, record=record)
        group = structure.by_key["0"]
        assert (group.units, group.layers) == (before.units, before.layers)
        record = apply(network, structure, Plan({"0": kept}), record=record)
        before = dataclasses.replace(group, units=len(kept))
    whole = channels == 16
    assert network[1].groups == (2 if whole else 4)
    assert len(network[0].weight) == (2 * 4 if whole else 1 * 4)
    assert network(X).shape[:2] == (5, 2)


def test_records_that_do_not_fit_change_nothing(network: Small) -> None:
    record = apply(copy.deepcopy(network), trace(network, X), Plan({"conv1": [0, 1]}))
    before = copy.deepcopy(network.state_dict())
    other = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(DamagedError, match=r"conv1.weight"):
        replay(other, record)
    record.index[record.axes["fc1.weight"]["1"]].of = 64
    with pytest.raises(DamagedError, match=r"fc1.weight"):
        replay(network, record)
    with pytest.raises(DamagedError, match=r"fc1.weight"):
        apply_record(network.state_dict(), record)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    wrong = Surgery(attributes={"conv1": {"colour": 3}})
    with pytest.raises(DamagedError, match="colour"):
        replay(network, wrong)


@pytest.mark.parametrize(
    ("kept", "error", "words"),
    [
        ({"conv1": []}, TargetError, "conv1"),
        ({"conv1": [0, 8]}, UsageError, "conv1"),
        ({"conv1": [-1, 3]}, UsageError, "conv1"),
        ({"conv1": [3, 3]}, UsageError, "conv1"),
        ({"conv9": [0]}, UsageError, "conv9"),
        ({"fc2": [0]}, UsageError, "fc2"),
    ],
)
def test_bad_plans_are_refused_before_anything_is_cut(
    network: Small, kept: dict[str, list[int]], error: type[Exception], words: str
) -> None:
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(error, match=words):
        apply(network, trace(network, X), Plan({"fc1": [0], **kept}))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_structure_of_another_network_is_refused(network: Small) -> None:
    structure = trace(network, X)
    apply(network, structure, Plan({"conv1": [0, 1, 2]}))
    with pytest.raises(UsageError, match=r"conv1\.weight"):
        apply(network, structure, Plan({"conv1": [0]}))


def test_inputs_that_do_not_run_are_an_error_that_names_the_layer(network: Small) -> None:
    with pytest.raises(UsageError, match="conv1"):
        trace(network, torch.zeros(1, 4, 4, 4))


def test_tied_parameters_stay_tied_and_frozen_ones_frozen() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.c.weight = self.b.weight
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))))

    network = Tied()
    network.b.weight.requires_grad_(False)
    x = torch.randn(3, 6)
    oracle.check_masking(network, (x,))
    dense = copy.deepcopy(network)
    record = apply(network, trace(network, x), Plan({"a": [0, 1, 7]}))
    assert network.c.weight is network.b.weight
    assert not network.b.weight.requires_grad
    assert network.b.weight.shape == (3, 3)
    assert {"b.weight", "c.weight"} <= {*record.axes}
    replay(dense, record)
    assert dense.c.weight is dense.b.weight
    assert torch.equal(dense(x), network(x))


def test_a_module_of_two_names_is_cut_once_and_the_record_knows_both() -> None:
    shared = nn.Linear(8, 8)
    network = nn.Sequential(nn.Linear(4, 8), shared, nn.ReLU(), shared, nn.Linear(8, 2))
    dense, x = copy.deepcopy(network), torch.ones(2, 4)
    record = apply(network, trace(network, x), Plan({"0": [1, 4, 6]}))
    assert record.attributes["1"] == record.attributes["3"] == {"in_features": 3, "out_features": 3}
    replay(dense, record)
    assert dense[1] is dense[3]
    assert torch.equal(dense(x), network(x))


def test_a_record_survives_the_sidecar(network: Small) -> None:
    import msgspec

    record = apply(network, trace(network, X), Plan({"conv1": [0, 5]}))
    again = msgspec.json.decode(msgspec.json.encode(record), type=Surgery)
    assert again == record
    assert Sidecar.__struct_fields__  # the schema that holds it


def test_the_layer_norm_shape_is_recorded() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    dense = copy.deepcopy(network)
    record = apply(network, trace(network, torch.zeros(2, 4)), Plan({"0": [1, 2, 6]}))
    assert record.attributes["1"] == {"normalized_shape": [3]}
    replay(dense, record)
    assert dense[1].normalized_shape == (3,)
    assert torch.equal(dense(torch.ones(2, 4)), network(torch.ones(2, 4)))
