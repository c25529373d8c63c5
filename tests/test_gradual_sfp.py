"""Soft filter pruning: which filters are zeroed when, that they recover, and what is cut in the end."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradual import Listening, check_resumed, live, prune, train

from prunecli import checkpoint as checkpoints
from prunecli.errors import PruneError
from prunecli.methods.gradual import psfp
from prunecli.training import Run

RESNET = {"arch": "resnet20", "arch_arg": ("width=4", "shortcut=projection"), "data": "digits"}


def step(run: Run) -> None:
    """A step of training on noise."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((16, *run.cost.input), generator=generator)
    run.optimizer.zero_grad()
    F.cross_entropy(run.network(x), torch.arange(16) % 10).backward()
    run.optimizer.step()


def softened(*args: Any, **options: Any) -> Run:
    """A live run whose first step has begun."""
    run = live(*args, **options)
    run.hook.before_forward(run)
    return run


def zeros(run: Run, name: str, axis: int = 0) -> list[int]:
    """The filters of a weight that are zero."""
    rows = run.network.get_parameter(name).detach().movedim(axis, 0).flatten(1)
    return [i for i, row in enumerate(rows) if not row.any()]


@pytest.mark.parametrize(("curve", "eighth"), [("original", 0.75), ("pgp", 0.25)])
def test_the_rate_grows_through_the_points_of_its_curve(curve: str, eighth: float) -> None:
    method = psfp.Method(psfp.Settings(sparsity=0.5, curve=curve))  # type: ignore[arg-type]
    k = {"original": 11.09, "pgp": -math.log(0.147)}[curve]
    for t in range(41):
        expected = (1 - math.exp(-k * t / 40)) / (1 - math.exp(-k))
        assert method.growth(t / 40) == pytest.approx(expected, abs=1e-4)
    assert [method.growth(t) for t in (0, 1 / 8, 1)] == pytest.approx([0, eighth, 1], abs=2e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_weakest_filters_and_their_momentum_are_zeroed_and_nothing_else(tmp_path: Path, optimizer: str) -> None:
    run = softened(tmp_path, "sfp", {}, {"sparsity": 0.5}, optimizer=optimizer)
    step(run)
    before = {name: p.detach().clone() for name, p in run.network.named_parameters()}
    moments = {n: [t.clone() for t in _moments(run, n)] for n in before}
    run.hook.after_epoch(run)
    for name, parameter in run.network.named_parameters():
        gone = torch.zeros(len(parameter), dtype=torch.bool)
        if name.startswith("conv") and name.endswith("weight"):
            norms = before[name].flatten(1).norm(dim=1)
            gone[norms.argsort()[: len(norms) // 2]] = True
        kept = ~gone.view(-1, *[1] * (parameter.ndim - 1))
        assert torch.equal(parameter.detach(), before[name] * kept), name
        assert moments[name]
        for now, then in zip(_moments(run, name), moments[name], strict=True):
            assert torch.equal(now, then * kept), name


def _moments(run: Run, name: str) -> list[torch.Tensor]:
    parameter = run.network.get_parameter(name)
    return [t for t in run.optimizer.state[parameter].values() if t.shape == parameter.shape]


def test_of_equal_filters_exactly_the_count_is_zeroed_before_the_first_step(tmp_path: Path) -> None:
    run = softened(tmp_path, "sfp", {}, {"sparsity": 0.3})
    for parameter in run.network.parameters():
        parameter.data.fill_(0.5)
    run.hook.before_forward(run)
    assert [zeros(run, f"conv{i}.weight") for i in (1, 2, 3)] == [[0], [*range(4)], [*range(36)]]  # of 6, 16 and 120


def test_zeroed_filters_recover_where_their_bias_passes_the_relu(tmp_path: Path) -> None:
    run = softened(tmp_path, "sfp", {}, {"sparsity": 0.5})
    gone = zeros(run, "conv2.weight")
    assert len(gone) == 8
    bias = run.network.get_parameter("conv2.bias")
    bias.data.fill_(-0.1)[gone[:5]] = 0.1
    step(run)
    assert zeros(run, "conv2.weight") == gone[5:]


@pytest.mark.parametrize("method", ["sfp", "psfp"])
def test_at_the_end_the_zeroed_filters_are_cut_and_the_output_stays(tmp_path: Path, method: str) -> None:
    run = softened(tmp_path, method, {}, {"sparsity": 0.5})
    run.training.epoch = run.training.epochs - 1
    step(run)
    run.hook.after_epoch(run)
    run.network.eval()
    x = torch.randn(8, *run.cost.input, generator=torch.Generator().manual_seed(2))
    before = run.network(x)
    run.hook.end(run)
    assert [len(run.network.get_parameter(f"conv{i}.weight")) for i in (1, 2, 3)] == [3, 8, 60]
    assert not run.masks
    assert torch.allclose(run.network(x), before, atol=1e-6)


def test_progressive_filters_go_by_the_curve(tmp_path: Path) -> None:
    run = live(tmp_path, "psfp", {}, {"sparsity": 0.5})
    found = []
    for epoch in range(4):
        run.training.epoch = epoch
        run.hook.after_epoch(run)
        found.append(len(zeros(run, "conv3.weight")))
        assert run.hook.numbers(run)["zeroed"] <= found[-1] / 120
    k = 8 * math.log(4)
    assert found == [math.floor(60 * (1 - math.exp(-k * t / 4)) / (1 - math.exp(-k)) + 1e-9) for t in (1, 2, 3, 4)]


def test_the_curve_of_pgp_clears_all_of_a_weak_filter(tmp_path: Path) -> None:
    run = live(tmp_path, "psfp", {"curve": "pgp"}, {"ratios": {"layer1.0.conv1": 0.5}}, **RESNET)
    run.training.epoch = 3
    step(run)
    run.hook.after_epoch(run)
    gone = zeros(run, "layer1.0.conv1.weight")
    assert len(gone) == 2
    norm = run.network.get_submodule("layer1.0.bn1")
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert (getattr(norm, name) == 0).nonzero().flatten().tolist() == gone, name
    assert zeros(run, "layer1.0.conv2.weight", 1) == gone
    run.hook.end(run)
    assert run.network.get_parameter("layer1.0.conv2.weight").shape == (4, 2, 3, 3)


def test_constants_that_borders_make_approximate_are_told(tmp_path: Path) -> None:
    run = softened(tmp_path, "sfp", {}, {"sparsity": 0.5}, **RESNET)
    run.network.get_parameter("layer1.0.bn1.bias").data.fill_(1.0)
    run.hook.say = Listening()
    run.hook.end(run)
    (warning,) = run.hook.say.lines
    assert re.search(r"folded constants are approximate at the borders .*: layer1.0.conv2 \(\d+%\);", warning)


def test_in_residual_stages_layers_choose_alone_and_projections_are_left(tmp_path: Path) -> None:
    run = softened(tmp_path, "sfp", {}, {"sparsity": 0.5}, **RESNET)
    weights = [n for n, p in run.network.named_parameters() if p.ndim == 4]
    for name in weights:
        count = 0 if "downsample" in name else len(run.network.get_parameter(name)) // 2
        assert len(zeros(run, name)) == count, name
    run.hook.end(run)
    assert len(run.network.get_parameter("layer2.0.conv1.weight")) == 4  # only its block reads it
    assert len(run.network.get_parameter("layer2.0.conv2.weight")) == 8  # the projection's filters are added to it
    masked = run.masks["layer2.0.conv2.weight"].flatten(1)
    assert int((masked.any(1)).sum()) == 4
    assert "layer2.0.downsample.0.weight" not in run.masks


def test_outputs_behind_projections_may_be_left_whole(tmp_path: Path) -> None:
    run = softened(tmp_path, "sfp", {"outputs": False}, {"sparsity": 0.5}, **RESNET)
    whole = {n for n, p in run.network.named_parameters() if p.ndim == 4 and not zeros(run, n)}
    outputs = {f"layer{stage}.{block}.conv2.weight" for stage in (2, 3) for block in (0, 1, 2)}
    assert whole == outputs | {f"layer{stage}.0.downsample.0.weight" for stage in (2, 3)}


def test_a_table_gives_layers_their_rates_and_linear_layers_take_part_where_named(tmp_path: Path) -> None:
    base = train(tmp_path, epochs=1)
    assert base.path
    made = prune(base.path, method="sfp", ratios="conv2=0.25,fc1=0.5", epochs=1)
    assert [len(made.weights[f"{name}.weight"]) for name in ("conv1", "conv2", "conv3", "fc1")] == [6, 12, 120, 42]
    log = made.sidecar.metrics.curve[-1].method
    assert log["zeroed"] == pytest.approx((4 + 42) / (16 + 84))


@pytest.mark.parametrize(("method", "steps"), [("sfp", 2), ("sfp", 9), ("psfp", 6)])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, method: str, steps: int) -> None:
    check_resumed(tmp_path, steps, method=method, sparsity=0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsity": None}, "--sparsity"),
        ({"sparsity": 0.0}, "no convolution that can be cut is to lose"),
        ({"ratios": "conv1=0.5"}, "either --sparsity or --ratios"),
        ({"only": ("fc9",)}, "fc9"),
        ({"skip": ("conv*",)}, "fc*"),
        ({"method": "psfp", "method_arg": ("curve=linear",)}, "original, or pgp"),
        ({"max_params": "50%"}, "--max-params"),
    ],
)
def test_what_it_does_not_take_is_refused_before_training(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(PruneError) as error:
        train(tmp_path, **({"method": "sfp", "sparsity": 0.5} | options))
    assert words in error.value.message + error.value.hint
    assert not list(tmp_path.iterdir())


def test_filters_under_a_weight_norm_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "normed.py").write_text(
        "from torch import nn\n"
        "class Normed(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 8, 3)), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PruneError, match="0 has a weight norm"):
        train(tmp_path, arch="normed:Normed", trust=("normed",), image_size=8, method="sfp", sparsity=0.5, epochs=1)


def test_channels_that_a_shortcut_appends_count_as_outputs_behind_projections(tmp_path: Path) -> None:
    run = live(tmp_path, "psfp", {}, {"sparsity": 0.5}, arch="resnet20", arch_arg=("width=4",))
    run.hook.soften(run, 4)
    zeroed = {n for n, p in run.network.named_parameters() if p.ndim == 4 and zeros(run, n)}
    blocks = [(stage, block) for stage in (1, 2, 3) for block in (0, 1, 2)]
    assert zeroed == {"conv1.weight", *(f"layer{s}.{b}.conv1.weight" for s, b in blocks)} | {
        f"layer1.{block}.conv2.weight" for block in (0, 1, 2)
    }


def test_the_snapshot_of_the_beginning_has_whole_filters(tmp_path: Path) -> None:
    plain, soft = tmp_path / "plain", tmp_path / "soft"
    for folder, options in ((plain, {}), (soft, {"method": "sfp", "sparsity": 0.5})):
        folder.mkdir()
        train(folder, epochs=1, keep="0", **options)
    first, second = (checkpoints.load(folder / "x.epoch0.safetensors").weights for folder in (plain, soft))
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


@pytest.mark.parametrize("curve", ["original", "pgp"])
def test_psfp_leaves_outputs_to_which_channels_are_appended(tmp_path: Path, curve: str) -> None:
    small = {"arch": "resnet20", "arch_arg": ("width=4", "in_channels=1"), "image_size": 8, "epochs": 1}
    made = train(tmp_path, method="psfp", sparsity=0.5, method_arg=(f"curve={curve}",), **small)
    assert {len(made.weights[f"layer{stage}.{block}.conv2.weight"]) for stage in (2, 3) for block in range(3)} == {
        8,
        16,
    }
    assert len(made.weights["layer3.0.conv1.weight"]) == 8
