"""Selective weight decay of channels: what decays, the exact count of parameters that is left, the cut."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from gradual import check_resumed, gradients, live, train
from torch import nn

from prunecli.checkpoint import build
from prunecli.errors import TargetError, UsageError
from prunecli.methods.gradual.counting import Sizes
from prunecli.models.preresnet import PreResNet
from prunecli.surgery import Plan, trace
from prunecli.training import Run

SMALL: dict[str, Any] = {
    "arch": "resnet20",
    "arch_arg": ("width=4", "in_channels=1", "shortcut=projection", "post_add_bn=true"),
    "image_size": 8,
}
CHOSEN = [1, 4, 6]  # of layer2.1.conv1, 8 channels wide
LOST = 3 * (8 * 9 + 2 + 8 * 9)  # their filters, scales and shifts, and what the next convolution reads of them


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def logits(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)))


def at_work(tmp_path: Path, scale: float = 0.1, **arguments: Any) -> Run:
    """A run that is to lose as many parameters as the chosen channels have, whose scales are the smallest."""
    whole = parameters(build(train(tmp_path, epochs=0, **SMALL)))
    given = {"sparsity": LOST / whole}
    run = live(tmp_path, "swd-structured", {"a_min": 2.0, "a_max": 2.0, "mu": 0.25} | arguments, given, **SMALL)
    norm = run.network.layer2[1].bn1
    norm.weight.data[CHOSEN] = scale
    norm.bias.data[CHOSEN] = 2.0
    return run


@pytest.mark.parametrize("variant", ["structured", "structuredF"])
def test_the_penalty_is_a_mu_w_on_what_would_be_cut(tmp_path: Path, variant: str) -> None:
    run = at_work(tmp_path, variant=variant)
    gradients(run)
    run.hook.after_backward(run)
    block, expected = "layer2.1", {name: torch.zeros_like(p) for name, p in run.network.named_parameters()}
    for name in ("bn1.weight", "bn1.bias") + ("conv1.weight",) * (variant == "structuredF"):
        expected[f"{block}.{name}"][CHOSEN] = 1.0
    if variant == "structuredF":
        expected[f"{block}.conv2.weight"][:, CHOSEN] = 1.0
    for name, parameter in run.network.named_parameters():
        assert torch.allclose(parameter.grad, 2.0 * 0.25 * parameter.detach() * expected[name]), name


def test_what_was_chosen_is_cut_and_without_effect_if_it_has_decayed(tmp_path: Path) -> None:
    run = at_work(tmp_path, scale=0.0)
    run.network.layer2[1].bn1.bias.data[CHOSEN] = 0
    before, whole = logits(run.network), parameters(run.network)
    run.hook.end(run)
    assert run.network.layer2[1].conv1.out_channels == 5
    assert parameters(run.network) == whole - LOST
    assert torch.allclose(logits(run.network), before, atol=1e-5)


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_of_equal_scales_as_few_go_as_the_budget_asks(tmp_path: Path, share: float) -> None:
    run = live(tmp_path, "swd-structured", {}, {"sparsity": share}, **SMALL)
    whole = parameters(run.network)
    run.hook.end(run)
    budget = math.floor(whole * (1 - share))
    most = (2 * 16 + 2 * 16) * 9 * 3  # a channel of the last stage's sum has fewer parameters than this
    assert budget - most < parameters(run.network) <= budget
    assert all(norm.num_features >= 1 for norm in run.network.modules() if isinstance(norm, nn.BatchNorm2d))


class Flattening(nn.Module):
    """A convolution whose maps are flattened, so that a channel is four slices of what reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Linear(20, 6)
        self.second, self.out = nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.second(self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("network", "side"), [(Flattening(), 2), (PreResNet(2, 4, 3, 3, True), 8)])
def test_the_count_is_that_of_the_cut_network(network: nn.Module, side: int) -> None:
    structure = trace(network.eval(), torch.zeros(2, 3, side, side))
    groups = {group.key: group for group in structure.groups if group.prunable}
    sizes, draw = Sizes(groups, dict(network.named_parameters())), random.Random(0)
    for _ in range(5):
        plan = Plan({k: sorted(draw.sample(range(g.units), draw.randint(1, g.units))) for k, g in groups.items()})
        kept = torch.zeros(sizes.units, dtype=torch.bool)
        for key, units in plan.kept.items():
            kept[[sizes.first[key] + unit for unit in units]] = True
        shapes = structure.shapes(plan)
        assert sizes.parameters(kept) == sum(math.prod(shapes[name]) for name, _ in network.named_parameters())


def test_a_run_drives_what_goes_to_zero_and_loses_nothing_with_it(tmp_path: Path) -> None:
    recipe: dict[str, Any] = {"schedule": "constant", "momentum": 0.0, "weight_decay": 5e-4}
    arguments = ("a_min=10000", "a_max=40000")  # lr mu a grows from 0.25 to 1
    cut = train(tmp_path, **SMALL, **recipe, method="swd-structured", sparsity=0.5, method_arg=arguments).sidecar
    assert cut.metrics.last
    log = cut.metrics.curve[-1]
    assert log.method["a"] == pytest.approx(40000)
    assert log.method["scale_going"] < 1e-2 * log.method["scale_staying"]
    assert cut.metrics.last.values["loss"] == pytest.approx(log.score["loss"], rel=0.01)
    assert cut.training
    assert cut.training.method.name is None


@pytest.mark.parametrize("steps", [3, 8])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, steps: int) -> None:
    check_resumed(tmp_path, steps, **SMALL, method="swd-structured", sparsity=0.6)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"arch": "lenet5", "arch_arg": (), "image_size": None}, TargetError, "batch norm"),
        ({"sparsity": 0.99}, TargetError, "ask for at most --sparsity 0."),
        ({"only": ("layer1.0.conv1",), "sparsity": 0.5}, TargetError, "one channel a layer"),
        ({"sparsity": None}, UsageError, "--sparsity is missing"),
        ({"weight_decay": 0.0}, UsageError, "--method swd-structured"),
        ({"method_arg": ("variant=F",)}, UsageError, "variant"),
        ({"method_arg": ("a_max=0.01",)}, UsageError, "below a_min"),
        ({"ratios": "conv1=0.5"}, UsageError, "--ratios"),
    ],
)
def test_what_cannot_be_is_refused_before_training(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as error:
        train(tmp_path, **(SMALL | {"method": "swd-structured", "sparsity": 0.5} | options))
    assert words in error.value.message + error.value.hint
    assert not list(tmp_path.iterdir())
