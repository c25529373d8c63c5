"""Residual branches: found in what a network computes, and left out as if they put out zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunecli import models
from prunecli.models.absent import Absent, Nothing, leave_out
from prunecli.surgery import branches
from prunecli.surgery.branches import modules_of, outermost, scale_behind
from prunecli.surgery.graph import graph_of


def images(size: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "arguments", "size", "count"),
    [
        ("resnet20", {"width": 2}, 16, 9),
        ("resnet20", {"width": 2, "shortcut": "projection", "post_add_bn": True}, 16, 9),
        ("preresnet56", {"width": 2, "selection": True}, 16, 18),
        ("wrn-16-1", {}, 16, 6),
        ("torchvision:resnet18", {}, 32, 8),
        ("torchvision:mobilenet_v2", {}, 32, 10),
        ("torchvision:efficientnet_b0", {}, 32, 9),
        ("torchvision:convnext_tiny", {}, 32, 18),
    ],
)
def test_networks_do_without_their_branches(name: str, arguments: dict[str, Any], size: int, count: int) -> None:
    torch.manual_seed(0)
    network, x = models.build(name, arguments).eval(), images(size)
    found = branches(network, x)
    assert [branch.reason for branch in found] == [None] * count
    assert len({branch.name for branch in found}) == count
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for branch in found[::2]:
            for scale in branch.scale:
                parameters[scale].zero_()
        expected = network(x)
        leave_out(network, modules_of(found[::2]))
        assert torch.allclose(network(x), expected, rtol=1e-5, atol=1e-6)
    network.train()(x).sum().backward()  # sums work in place there, on the shortcut too
    assert all(p.grad is not None for n, p in network.named_parameters() if "layer_scale" not in n)


@pytest.mark.parametrize("name", ["lenet5-branches", "vgg11", "densenet40"])
def test_networks_without_shortcuts_have_no_branch(name: str) -> None:
    assert branches(models.build(name, {}), images(channels=1 if "lenet" in name else 3)) == []


def test_the_branch_of_a_first_block_is_not_its_projection() -> None:
    network = models.build("resnet20", {"width": 2, "shortcut": "projection"})
    (branch,) = (branch for branch in branches(network, images(16)) if branch.name == "layer2.0")
    assert [*branch.modules] == [f"layer2.0.{name}" for name in ("bn1", "bn2", "conv1", "conv2")]
    assert branch.scale == ("layer2.0.bn2.weight", "layer2.0.bn2.bias")


class Around(nn.Module):
    """x + f(x), between a stem and a mean."""

    def __init__(self, function: Callable[[Around, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.one, self.two = (nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, bias=False))
        self.own, self.factor = nn.Parameter(torch.randn(4, 4, 1, 1)), nn.Parameter(torch.rand(4, 1, 1))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return (x + self.function(self, x)).mean((2, 3))


@pytest.mark.parametrize(
    ("function", "scale"),
    [
        (lambda m, x: m.two(m.one(x).relu()), ("two.weight",)),
        (lambda m, x: F.dropout(m.one(x), training=m.training), ("one.weight", "one.bias")),
        (lambda m, x: m.one(x).flatten(1).view(x.shape), ("one.weight", "one.bias")),
        (lambda m, x: m.factor * m.one(x).tanh(), ("factor",)),
        (lambda m, x: m.one(m.one(x)), "shares weights"),
        (lambda m, x: m.two(m.one(x)).sigmoid(), "no layer whose weights a factor could go into"),
        (lambda m, x: F.conv2d(x, m.own), "is no module of its own"),
        (lambda m, x: m.one(x)[:, [1, 0, 3, 2]], "no layer whose weights"),
        (lambda m, x: (lambda y: y.reshape(y.shape))(m.one(x)), "nothing, which has no shape"),
    ],
)
def test_what_precedes_the_sum_decides(function: Any, scale: Any) -> None:
    (branch,) = branches(Around(function), images(4))
    if isinstance(scale, tuple):
        assert (branch.reason, branch.scale) == (None, scale)
    else:
        assert scale in str(branch.reason)


def test_attention_is_left_out_with_its_weights() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Linear(4, 8), nn.LayerNorm(8)
            self.attention, self.mlp = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = self.norm(x)
            y, _ = self.attention(y, y, y)
            x = x + y
            return (x + self.mlp(x)).mean(1)

    network, x = Attending(), torch.randn(2, 3, 4)
    attention, mlp = branches(network, x)
    assert (attention.name, attention.modules, mlp.name) == ("attention", ("attention", "norm"), "mlp")
    assert attention.scale == ("attention.out_proj.weight", "attention.out_proj.bias")
    leave_out(network, attention.modules)
    expected = network.stem(x)
    assert torch.equal(network(x), (expected + network.mlp(expected)).mean(1))


def test_the_sum_of_a_branch_with_itself_counts_twice() -> None:
    (branch,) = branches(Around(lambda m, x: (lambda y: y + y)(m.one(x))), images(4))
    assert branch.reason


def test_nothing_is_nothing_whatever_is_done_with_it() -> None:
    nothing, x = Absent()(torch.ones(1)), torch.ones(2)
    for other in (nothing + x, x + nothing, torch.add(nothing, x), torch.add(x, nothing)):
        assert other is not x
        assert torch.equal(other, x)
    assert x.add_(nothing) is x
    for other in (F.relu(nothing), nothing.mean(1), nothing * 2, 2 * nothing, x * nothing, -nothing, nothing + nothing):
        assert isinstance(other, Nothing)
    with pytest.raises(AttributeError, match="no shape"):
        _ = nothing.shape
    with pytest.raises(AttributeError):
        leave_out(nn.Sequential(), ["no.such"])


def test_outermost_modules() -> None:
    assert outermost(["a.b.c", "a.b", "ab", "a.bc"]) == ["a.b", "a.bc", "ab"]


def test_the_scale_behind_a_layer_is_that_of_its_batch_norm() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU())
    graph = graph_of(network, images(4))
    assert scale_behind(graph, "0.weight") == ("1.weight", "1.bias")
    assert scale_behind(graph, "3.weight") == ("3.weight", "3.bias")


def test_networks_that_ask_for_values_have_branches_too() -> None:
    def asking(m: Around, x: Tensor) -> Tensor:
        return m.two(m.one(x)) if float(x.sum()) > -1e9 else x

    (branch,) = branches(Around(asking), images(4))
    assert branch.reason is None
