"""Which 1 x 1 convolutions are projections of a shortcut, and what methods do about them and about others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gradual import live
from torch import Tensor, nn

from prunecli import models
from prunecli.surgery.branches import projections

SOURCE = """
import torch
from torch import nn

class Excited(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.expand, self.depthwise = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8)
        self.norm, self.project = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)
        self.fc1, self.fc2, self.more = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(6, 6, 1)
        self.head = nn.Conv2d(6, 10, 1)

    def forward(self, x):
        x = self.norm(self.depthwise(self.expand(self.stem(x)).relu())).relu()
        x = self.project(x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid())
        return self.head(x + self.more(x.relu())).mean((2, 3))

class Separable(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 10, 1)
        self.depthwise, self.pointwise = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.a(x)
        return self.head(x + self.pointwise(self.depthwise(x))).mean((2, 3))
"""


class Block(nn.Module):
    """What a function makes of a stem's output, between the stem and a head."""

    def __init__(self, function: Callable[[Block, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.other, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 1)
        self.short, self.norm, self.light = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(4, 4, 3, 1, 1, 1, 4)
        self.one, self.two = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 6, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self, self.stem(x))).mean((2, 3))  # type: ignore[no-any-return]

    def branch(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda m, x: m.branch(x) + m.short(x), {"short"}),
        (lambda m, x: m.norm(m.short(x)).add_(m.branch(x)), {"short"}),
        (lambda m, x: m.branch(x.relu()) + m.short(torch.max_pool2d(x, 3, 1, 1)), {"short"}),
        (lambda m, x: m.branch(m.light(x)) + m.short(m.light(x)), {"short"}),  # as in GhostNet
        (lambda m, x: m.branch(x) + m.short(x).relu(), set()),
        (lambda m, x: m.branch(x) * m.short(x), set()),
        (lambda m, x: m.other(x) + m.short(x), set()),  # neither is the shortcut
        (lambda m, x: (lambda y: y + m.norm(y))(m.short(x)), set()),
        (lambda m, x: (lambda y: y + m.branch(x) * y)(m.short(x)), set()),
        (lambda m, x: m.branch(m.light(x).sigmoid()) + m.short(x), {"short"}),
    ],
)
def test_a_projection_is_the_lighter_summand_of_what_a_branch_is_added_to(function: Any, found: set[str]) -> None:
    made = projections(Block(function), torch.randn(2, 3, 8, 8))
    assert made.keys() == {f"{name}.weight" for name in found}
    assert all({"one.weight", "two.weight"} <= branch for branch in made.values())


def test_summands_of_different_origin_are_no_shortcut() -> None:
    class Fused(Block):
        def forward(self, x: Tensor) -> Tensor:
            low, high = self.stem(x), self.stem(x.sigmoid())
            return (self.head(self.branch(high) + self.short(low)) + low.mean() + high.mean()).mean((2, 3))  # type: ignore[no-any-return]

    assert projections(Fused(lambda m, x: x), torch.randn(2, 3, 8, 8)) == {}


@pytest.mark.parametrize(
    ("name", "arguments", "size", "found"),
    [
        ("resnet20", {"width": 2, "shortcut": "projection"}, 16, [f"layer{i}.0.downsample.0" for i in (2, 3)]),
        ("resnet20", {"width": 2}, 16, []),
        ("preresnet56", {"width": 2}, 16, [f"layer{i}.0.downsample.0" for i in (1, 2, 3)]),
        ("wrn-16-1", {}, 16, [f"layer{i}.0.downsample.0" for i in (2, 3)]),
        ("torchvision:resnet18", {}, 32, [f"layer{i}.0.downsample.0" for i in (2, 3, 4)]),
        ("torchvision:mobilenet_v3_small", {}, 32, []),
    ],
)
def test_networks_have_the_projections_that_they_name(
    name: str, arguments: dict[str, Any], size: int, found: list[str]
) -> None:
    network = models.build(name, arguments)
    assert [*projections(network, torch.zeros(2, 3, size, size))] == [f"{layer}.weight" for layer in found]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The options under which this file's networks are trained."""
    (tmp_path / "mobile.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return {"data": "digits", "trust": ("mobile",), "image_size": 8}


def test_filters_of_expanding_and_projecting_layers_of_an_excited_block_are_zeroed(
    tmp_path: Path, own: dict[str, Any]
) -> None:
    run = live(tmp_path, "sfp", {}, {"sparsity": 0.5}, arch="mobile:Excited", **own)
    run.hook.soften(run, 4)
    for name in ("stem", "expand", "fc1", "fc2", "project", "more"):
        weight = run.network.get_parameter(f"{name}.weight")
        assert int((weight == 0).flatten(1).all(1).sum()) == len(weight) // 2, name


@pytest.mark.parametrize(
    ("method", "arguments"), [("psfp", {}), ("rpgp", {"criterion": "l2", "residual": "no-downsample"})]
)
def test_a_separable_branch_is_no_projection(
    tmp_path: Path, own: dict[str, Any], method: str, arguments: dict[str, Any]
) -> None:
    run = live(tmp_path, method, arguments, {"sparsity": 0.5}, arch="mobile:Separable", **own)
    (group,) = (group for group in run.structure().groups if group.prunable)
    assert group.layers == ["a", "pointwise"]
    run.training.epoch = 3
    run.hook.after_epoch(run)
    zeros = {n: int((p == 0).flatten(1).all(1).sum()) for n, p in run.network.named_parameters() if p.ndim == 4}
    left = {name: len(run.network.get_parameter(name)) - zeros[name] for name in ("a.weight", "pointwise.weight")}
    assert left == {"a.weight": 4, "pointwise.weight": 4}
