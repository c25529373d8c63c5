"""Network Slimming: its penalty in closed form, the exact count that it cuts, what stays the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from gradual import check_resumed, gradients, live, prune, train
from torch import nn

import prunecli
from prunecli import checkpoint as checkpoints
from prunecli import models
from prunecli.checkpoint import Checkpoint, build
from prunecli.errors import TargetError, UsageError
from prunecli.options.prune import PruneOptions
from prunecli.training import Run

SMALL: dict[str, Any] = {
    "arch": "resnet20",
    "arch_arg": ("width=4", "in_channels=1", "shortcut=projection"),
    "image_size": 8,
}
CHANNELS = sum(width * (3 + 1) for width in (4, 8, 16))  # of each stage three first convolutions and the residual sum


def norms(network: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}


def logits(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)))


def units(network: nn.Module) -> int:
    """Channels that are left: those of the first convolution of each block, and of each stage's sum."""
    firsts = [m.out_channels for name, m in network.named_modules() if name.endswith(".conv1")]
    return sum(firsts) + sum(getattr(network, f"layer{stage}")[0].conv2.out_channels for stage in (1, 2, 3))


def at_the_end(tmp_path: Path, arguments: dict[str, Any], share: float) -> Run:
    return live(tmp_path, "slimming", arguments, {"sparsity": share}, **SMALL)


@pytest.mark.parametrize("penalty", ["l1", "smooth"])
def test_the_penalty_goes_to_the_scales_alone(tmp_path: Path, penalty: str) -> None:
    run = live(tmp_path, "slimming", {"lambda": 0.25, "penalty": penalty}, {}, **SMALL)
    scales = {f"{name}.weight" for name in norms(run.network)}
    run.network.bn1.weight.data.copy_(torch.tensor([-2.0, -0.5, 0.0, 0.25]))
    gradients(run)
    run.hook.after_backward(run)
    for name, parameter in run.network.named_parameters():
        assert bool((parameter.grad != 0).any()) == (name in scales), name
    expected = {"l1": [-0.25, -0.25, 0, 0.25], "smooth": [-0.25, -0.25, 0, 0.125]}[penalty]
    assert run.network.bn1.weight.grad.tolist() == expected


def test_named_layers_alone_are_penalised(tmp_path: Path) -> None:
    run = live(tmp_path, "slimming", {}, {"only": ["layer2.*.conv1"]}, **SMALL)
    gradients(run)
    run.hook.after_backward(run)
    moved = {name for name, p in run.network.named_parameters() if bool(p.grad.any())}
    assert moved == {f"layer2.{block}.bn1.weight" for block in range(3)}


def test_a_new_network_starts_from_small_scales_and_a_given_one_from_its_own(tmp_path: Path) -> None:
    new = train(tmp_path, **SMALL, epochs=0, method="slimming", method_arg=("gamma=0.25",))
    assert bool((new.weights["layer1.0.bn1.weight"] == 0.25).all())
    dense = train(tmp_path, **SMALL, epochs=0)
    (tmp_path / "y").mkdir()
    given = train(tmp_path / "y", **SMALL, epochs=0, method="slimming", init=str(dense.path))
    pruned = prune(tmp_path / "x.safetensors", epochs=0, method="slimming")
    for checkpoint in (given, pruned):
        assert bool((checkpoint.weights["layer1.0.bn1.weight"] == 1).all())


def test_of_equal_scales_exactly_the_share_goes_by_index_and_no_layer_loses_all(tmp_path: Path) -> None:
    run = at_the_end(tmp_path, {}, 0.3)
    run.hook.end(run)
    gone = math.floor(CHANNELS * 0.3)
    assert units(run.network) == CHANNELS - gone
    # the first layers go first, down to one channel: 4 + 3 * 4 of stage 1, then of stage 2
    assert [run.network.layer1[i].conv1.out_channels for i in range(3)] == [1, 1, 1]
    assert run.cuts.index[run.cuts.axes["layer1.0.conv1.weight"]["0"]].kept == [3]


@pytest.mark.parametrize("compensate", [False, True])
def test_channels_without_effect_leave_the_function_as_it_is(tmp_path: Path, compensate: bool) -> None:
    run = at_the_end(tmp_path, {"compensate": compensate}, 3 / CHANNELS)
    for module in norms(run.network).values():
        nn.init.uniform_(module.weight, 0.5, 1)
    norm = run.network.layer2[1].bn1
    norm.weight.data[[1, 4, 6]] = 0
    before = logits(run.network)
    run.hook.end(run)
    assert norm.num_features == 5
    assert torch.allclose(logits(run.network), before, atol=1e-5)


def test_shifts_of_what_goes_are_folded_when_asked(tmp_path: Path) -> None:
    apart = []
    for compensate in (False, True):
        run = at_the_end(tmp_path, {"compensate": compensate}, 3 / CHANNELS)
        for module in norms(run.network).values():
            nn.init.constant_(module.weight, 1.0)
        norm = run.network.layer2[1].bn1
        norm.weight.data[[1, 4, 6]] = 0
        norm.bias.data[[1, 4, 6]] = 2.0
        before = logits(run.network)
        run.hook.end(run)
        apart.append(float((logits(run.network) - before).abs().max()))
    assert apart[1] < 0.7 * apart[0]  # borders of padded convolutions remain


def test_it_ends_as_a_cut_after_training_does_and_the_result_goes_on(tmp_path: Path) -> None:
    arguments: dict[str, Any] = SMALL | {"method": "slimming", "method_arg": ("lambda=0.01",)}
    (tmp_path / "once").mkdir()
    at_once = train(tmp_path / "once", **arguments, sparsity=0.4)
    dense = train(tmp_path, **arguments)
    later = tmp_path / "later.safetensors"
    prunecli.prune(PruneOptions(checkpoint=str(dense.path), method="bn-scale", sparsity=0.4, output=str(later)))
    again = checkpoints.load(later)
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in at_once.weights.items())
    assert at_once.sidecar.surgery == again.sidecar.surgery
    assert at_once.sidecar.training
    assert at_once.sidecar.training.method.name is None
    assert units(build(at_once)) == CHANNELS - math.floor(CHANNELS * 0.4)
    goes_on(at_once, tmp_path)


def goes_on(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """What is written is taken by finetune, export and report."""
    path, small = str(checkpoint.path), str(tmp_path / "small.safetensors")
    prunecli.finetune(prunecli.FinetuneOptions(checkpoint=path, epochs=1, batch_size=256, output=small, threads=1))
    prunecli.export(prunecli.ExportOptions(checkpoint=small, output=str(tmp_path / "small.onnx")))
    assert prunecli.report(prunecli.ReportOptions(checkpoints=(path, small)))


def test_a_network_with_channel_selection_loses_inputs_of_blocks(tmp_path: Path) -> None:
    options = SMALL | {"arch": "preresnet56", "arch_arg": ("width=2", "in_channels=1", "selection=true")}
    cut = train(tmp_path, **options, epochs=1, method="slimming", sparsity=0.5)
    network = build(cut)
    channels = sum(norm.num_features for norm in norms(network).values())
    whole = sum(
        norm.num_features for norm in norms(models.build(cut.sidecar.arch.name, cut.sidecar.arch.args)).values()
    )
    assert channels == whole - whole // 2
    assert cut.weights["layer1.0.conv3.weight"].shape[0] == 8  # the stream


@pytest.mark.parametrize("steps", [3, 8])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, steps: int) -> None:
    check_resumed(tmp_path, steps, **SMALL, method="slimming", sparsity=0.5, method_arg=("penalty=smooth",))


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"arch": "lenet5", "arch_arg": (), "image_size": None}, TargetError, "batch norm"),
        ({"sparsity": 0.95}, TargetError, "units can go"),
        ({"only": ("fc",)}, TargetError, "fc"),
        ({"only": ("nothing",)}, UsageError, "nothing"),
        ({"method_arg": ("lambda=0",)}, UsageError, "lambda"),
        ({"method_arg": ("penalty=l2",)}, UsageError, "penalty"),
        ({"max_params": "50%"}, UsageError, "--max-params"),
    ],
)
def test_what_cannot_be_is_refused_before_training(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as error:
        train(tmp_path, **(SMALL | {"method": "slimming", "sparsity": 0.5} | options))
    assert words in error.value.message + error.value.hint
    assert not list(tmp_path.iterdir())
