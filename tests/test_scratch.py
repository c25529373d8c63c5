"""`scratch` end to end: shapes, first weights, budgets and what the checkpoint says; LeNet-5, VGG and ResNet."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

import prunecli
from prunecli import checkpoint as checkpoints
from prunecli.checkpoint import Checkpoint, pack_mask, unpack_mask
from prunecli.commands.history import step
from prunecli.commands.scratch import Scratched
from prunecli.commands.train import new_network
from prunecli.errors import UsageError
from prunecli.measure import cost
from prunecli.options.prune import PruneOptions
from prunecli.options.rewind import RewindOptions
from prunecli.options.scratch import ScratchOptions
from prunecli.options.train import FinetuneOptions, TrainOptions
from prunecli.retraining.shape import first_units, sums_of
from prunecli.sidecar import Arch, Optimizer, ParamGroup, Schedule, Sidecar, Training
from prunecli.surgery import apply, trace
from prunecli.training import describe

Widths = dict[str, int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained LeNet-5 with snapshots; cut, masked, and cut then masked."""
    where = tmp_path_factory.mktemp("scratch")
    train = TrainOptions(
        arch="lenet5", data="digits", epochs=4, batch_size=256, schedule="multistep", milestones="2,3", keep="0,1",
        threads=1, seed=5, output=str(where / "base.safetensors"),
    )  # fmt: skip
    prunecli.train(train)
    for source, output, method, share in (
        ("base", "cut", "l1", 0.5), ("base", "masked", "magnitude", 0.8), ("cut", "both", "magnitude", 0.5),
    ):  # fmt: skip
        files = {"checkpoint": str(where / f"{source}.safetensors"), "output": str(where / f"{output}.safetensors")}
        prunecli.prune(PruneOptions(**files, method=method, sparsity=share, no_eval=True))
    return where


def load(folder: Path, name: str) -> Checkpoint:
    return checkpoints.load(folder / f"{name}.safetensors")


def scratch(folder: Path, name: str, **options: Any) -> tuple[Checkpoint, Scratched]:
    """Write the initial checkpoint, unless `epochs` says more; read it back."""
    for key in ("to", "guide"):
        if key in options:
            options[key] = str(folder / f"{options[key]}.safetensors")
    output = folder / f"scratch-{name}.safetensors"
    given = {"epochs": 0, "threads": 1} | options
    files = {"checkpoint": str(folder / f"{name}.safetensors"), "output": str(output)}
    result = prunecli.scratch(ScratchOptions(**files, **given))
    return checkpoints.load(output), result


def widths(checkpoint: Checkpoint) -> Widths:
    return {name.removesuffix(".weight"): len(t) for name, t in checkpoint.weights.items() if t.dim() > 1}


def training(checkpoint: Checkpoint) -> Training:
    assert checkpoint.sidecar.training is not None
    return checkpoint.sidecar.training


def test_scratch_e_is_the_pruned_network_with_other_weights_and_the_large_networks_run(folder: Path) -> None:
    pruned, (initial, result) = load(folder, "cut"), scratch(folder, "cut")
    assert {n: t.shape for n, t in initial.weights.items()} == {n: t.shape for n, t in pruned.weights.items()}
    assert initial.sidecar.surgery == pruned.sidecar.surgery
    original = load(folder, "base.epoch0")
    assert not any(torch.equal(t.flatten()[:3], original.weights[n].flatten()[:3]) for n, t in initial.weights.items())
    run = training(initial)
    assert (run.epoch, run.epochs, run.schedule.milestones, run.batch_size) == (0, 4, [2, 3], 256)
    assert msgspec.structs.replace(run, rng={}) == msgspec.structs.replace(training(original), rng={})
    assert initial.sidecar.optimizer.state == {}  # type: ignore[union-attr]
    assert initial.sidecar.metrics.last is None
    assert not result.trained


def test_scratch_b_has_the_large_networks_computation(folder: Path) -> None:
    initial, result = scratch(folder, "cut", budget="B")
    macs = 3 * 25 * 784 + 8 * 75 * 100 + 60 * 200 + 42 * 60 + 10 * 42  # LeNet-5 of 3, 8, 60, 42
    assert result.ratio == 416_520 / macs
    run = training(initial)
    assert run.epochs == result.epochs == int(4 * 416_520 / macs) == 12
    assert run.schedule.milestones == [6, 9]
    assert result.data()["macs_ratio"] == result.ratio


def test_scratch_b_of_a_masked_network_counts_convolution_weights_that_are_left(folder: Path) -> None:
    initial, result = scratch(folder, "masked", budget="B")
    places = {"conv1.weight": 784, "conv2.weight": 100, "conv3.weight": 1}
    dense = sum(initial.weights[name].numel() * n for name, n in places.items())
    left = sum(initial.sidecar.masks[name].kept * n for name, n in places.items())
    assert result.ratio == dense / left > 1.0
    assert training(initial).epochs == int(4 * dense / left)


def test_options_override_the_recipe(folder: Path) -> None:
    initial, _ = scratch(folder, "cut", optimizer="adam", schedule="cosine", batch_size=32, seed=9, budget="B")
    run, optimizer = training(initial), initial.sidecar.optimizer
    assert optimizer is not None
    assert (optimizer.name, run.lr, run.batch_size, run.seed) == ("Adam", 0.001, 32, 9)
    assert (run.epochs, run.schedule.kind, run.schedule.milestones) == (12, "cosine", [])
    assert training(scratch(folder, "cut", milestones="1")[0]).schedule == Schedule(kind="multistep", milestones=[1])
    assert training(scratch(folder, "cut", lr=0.5)[0]).schedule.milestones == [2, 3]
    with pytest.raises(UsageError, match="--milestones is missing"):  # a new curve, not half of the old one
        scratch(folder, "cut", warmup=1)
    with pytest.raises(UsageError, match="--period means nothing with --schedule multistep"):
        scratch(folder, "cut", milestones="1", period=2)


def test_weights_are_a_function_of_the_seed(folder: Path) -> None:
    first, second = scratch(folder, "cut")[1].checkpoint.sha256, scratch(folder, "cut")[1].checkpoint.sha256
    other = scratch(folder, "cut", seed=6)[1].checkpoint.sha256
    assert first == second != other


def test_training_from_scratch_ends_with_scores_and_history(folder: Path) -> None:
    trained, result = scratch(folder, "both", epochs=2)
    assert result.trained
    assert [log.epoch for log in trained.sidecar.metrics.curve] == [1, 2]
    assert training(trained).schedule.milestones == [1, 1]  # int of 1 and 1.5: the curve over half the epochs
    entry = trained.sidecar.history[-1]
    assert (entry.command, entry.parent) == ("scratch", load(folder, "both").sha256)
    assert entry.options["budget"] == "E"
    for name, mask in trained.sidecar.masks.items():
        assert not trained.weights[name][~unpack_mask(mask)].any()
        assert trained.weights[name][unpack_mask(mask)].any()


def test_the_initial_checkpoint_trains_to_the_same_weights_with_finetune(folder: Path) -> None:
    scratch(folder, "cut")
    files = {"checkpoint": str(folder / "scratch-cut.safetensors"), "output": str(folder / "later.safetensors")}
    later = prunecli.finetune(FinetuneOptions(**files, threads=1)).checkpoint
    at_once, _ = scratch(folder, "cut", epochs=4)
    assert all(torch.equal(tensor, later.weights[name]) for name, tensor in at_once.weights.items())


# First weights


def test_random_weights_of_a_masked_network_are_the_draw_under_the_mask(folder: Path) -> None:
    initial, _ = scratch(folder, "masked")
    for name, mask in load(folder, "masked").sidecar.masks.items():
        keep, weight = unpack_mask(mask), initial.weights[name]
        assert torch.equal(weight != 0, keep)
        assert weight.abs().max().item() <= 1 / math.sqrt(weight[0].numel())  # LeNet-5: PyTorch's default


@pytest.mark.parametrize("init", ["sparse", "sparse-unscaled"])
def test_sparse_initialisation(folder: Path, init: str) -> None:
    initial, _ = scratch(folder, "masked", init=init)
    keep = unpack_mask(load(folder, "masked").sidecar.masks["conv3.weight"])
    n = (int(keep.sum()) if init == "sparse" else keep.numel()) / 16
    weight = initial.weights["conv3.weight"]
    assert weight[keep].std().item() == pytest.approx(math.sqrt(2 / n), rel=0.05)
    assert not weight[~keep].any()


@pytest.mark.parametrize("kind", ["cut", "masked", "both"])
def test_a_winning_ticket_starts_from_the_original_initialisation(folder: Path, kind: str) -> None:
    initial, _ = scratch(folder, kind, init="ticket", to="base.epoch0")
    files = {"checkpoint": str(folder / f"{kind}.safetensors"), "to": str(folder / "base.epoch0.safetensors")}
    lottery = prunecli.rewind(
        RewindOptions(**files, regime="lottery", output=str(folder / f"ticket-{kind}.safetensors"))
    ).checkpoint
    assert all(torch.equal(tensor, initial.weights[name]) for name, tensor in lottery.weights.items())
    assert initial.sidecar.history[-1].options["to"] == load(folder, "base.epoch0").sha256


# Shapes


def test_uniform_pruning_matches_parameters_or_macs(folder: Path) -> None:
    pruned = sums_of(load(folder, "cut"))
    by_params, by_macs = (scratch(folder, "cut", shape="uniform", match=match)[0] for match in ("params", "macs"))
    for initial, size, limit in (
        (by_params, sums_of(by_params).params, pruned.params), (by_macs, sums_of(by_macs).macs, pruned.macs),
    ):  # fmt: skip
        assert 0.9 * limit < size <= limit
        shares = [kept / whole for kept, whole in zip(widths(initial).values(), (6, 16, 120, 84), strict=False)]
        assert max(shares) - min(shares) <= 1 / 6 + 1 / 16


def test_uniform_sparsification_has_exactly_as_many_weights(folder: Path) -> None:
    for name in ("masked", "both"):
        pruned, (initial, _) = load(folder, name), scratch(folder, name, shape="uniform")
        masks = initial.sidecar.masks
        assert masks.keys() == pruned.sidecar.masks.keys()
        assert sum(m.kept for m in masks.values()) == sum(m.kept for m in pruned.sidecar.masks.values())
        assert masks["conv3.weight"] != pruned.sidecar.masks["conv3.weight"]
        share = masks["conv3.weight"].kept / initial.weights["conv3.weight"].numel()
        assert share == pytest.approx(0.2 if name == "masked" else 0.5, abs=0.02)


def test_thin_is_dense_and_about_as_large_as_what_a_mask_keeps(folder: Path) -> None:
    masked, (initial, _) = load(folder, "masked"), scratch(folder, "masked", shape="thin")
    sums = sums_of(masked)
    root = math.sqrt(sums.nonzero_params / sums.params)
    assert initial.sidecar.masks == {}
    expected = {name: math.floor(root * width) for name, width in widths(masked).items()} | {"fc2": 10}
    assert widths(initial) == expected


def test_the_thin_network_runs_and_can_be_pruned_again(folder: Path) -> None:
    scratch(folder, "masked", shape="thin")
    files = {"checkpoint": str(folder / "scratch-masked.safetensors"), "output": str(folder / "thinner.safetensors")}
    prunecli.prune(PruneOptions(**files, method="l1", sparsity=0.5, no_eval=True))
    network = checkpoints.build(load(folder, "thinner"))
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def make(folder: Path, name: str, arch: str, kept: dict[str, float], **args: Any) -> Checkpoint:
    """An untrained network, cut to a share of its units by layer."""
    network = new_network(Arch(name=arch, args=args), 0, ())
    example = torch.zeros(1, 3, 32, 32)
    structure, measured = trace(network, example), cost(network, example)
    groups = {group.key: group.units for group in structure.groups if group.prunable}
    assert kept.keys() <= groups.keys()
    record = apply(network, structure, first_units({key: int(groups[key] * share) for key, share in kept.items()}))
    run = Training(epochs=160, batch_size=64, seed=0, lr=0.1, schedule=Schedule(kind="multistep", milestones=[80, 120]))
    names = [parameter for parameter, _ in network.named_parameters()]
    optimizer = Optimizer(name="SGD", groups=[ParamGroup(params=names, options={"lr": 0.1})])
    history = [step("train", describe(run, optimizer), parent=None, measured={})]
    sidecar = Sidecar(arch=Arch(name=arch, args=args), cost=measured, surgery=record, history=history)
    checkpoint = Checkpoint({n: t.detach().contiguous() for n, t in network.state_dict().items()}, sidecar)
    checkpoints.save(checkpoint, folder / f"{name}.safetensors")
    return checkpoint


def test_guided_pruning_averages_over_a_stage_and_transfers_to_a_deeper_network(folder: Path) -> None:
    # features by stage, VGG-13: 0 3 | 7 10 | 14 17 | 21 24 | 28 31; VGG-16: 0 3 | 7 10 | 14 17 20 | 24 27 30 | 34 37 40
    kept = {0: 0.5, 3: 0.75, 14: 0.25, 21: 0.5, 24: 0.25, 28: 0.125}
    make(folder, "vgg13", "vgg13", {f"features.{i}": share for i, share in kept.items()})
    guided = widths(scratch(folder, "vgg13", shape="guided")[0])
    assert [guided[f"features.{i}"] for i in (0, 3, 7, 10, 14, 17, 21, 24, 28, 31)] == [
        40, 40, 128, 128, 160, 160, 192, 192, 288, 288
    ]  # fmt: skip
    make(folder, "vgg16", "vgg16", {"features.40": 0.5})
    there = widths(scratch(folder, "vgg16", shape="transferred", guide="vgg13")[0])
    assert [there[f"features.{i}"] for i in (0, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)] == [
        40, 128, 128, 160, 160, 160, 192, 192, 192, 288, 288, 288
    ]  # fmt: skip
    assert there["classifier.0"] == 512  # linear layers are no stage of the guide


def test_residual_sums_stay_whole_when_pruning_left_them_whole(folder: Path) -> None:
    make(folder, "resnet", "resnet20", {f"layer{s}.{b}.conv1": 0.5 for s in (1, 2, 3) for b in (0, 1)})
    for shape in ("uniform", "guided"):
        found = widths(scratch(folder, "resnet", shape=shape)[0])
        assert all(found[f"layer{s}.{b}.conv2"] == 8 * 2**s for s in (1, 2, 3) for b in range(3))
        assert len({found[f"layer2.{b}.conv1"] for b in range(3)}) == 1
    assert found["layer3.2.conv1"] == 43  # 64 * (0.5 + 0.5 + 1) / 3
    thin = widths(scratch(folder, "resnet", shape="thin")[0])
    assert thin["layer1.0.conv2"] < 16


def test_scratch_b_of_the_papers_residual_network(folder: Path) -> None:
    make(folder, "half", "resnet20", {f"layer{s}.{b}.conv1": 0.5 for s in (1, 2, 3) for b in range(3)})
    initial, result = scratch(folder, "half", budget="B")
    small = sums_of(load(folder, "half")).macs
    assert result.ratio == 40_551_040 / small
    epochs = training(initial).epochs
    assert epochs == int(160 * result.ratio)
    assert training(initial).schedule.milestones == [epochs // 2, int(0.75 * epochs)]
    assert training(scratch(folder, "half", budget="B-imagenet")[0]).epochs == min(180, int(90 * result.ratio))


# What is refused


@pytest.mark.parametrize(
    "options, message",
    [
        ({"budget": "C"}, "--budget: unknown value 'C'"),
        ({"init": "rand"}, "--init: unknown"),
        ({"shape": "wide"}, "--shape: unknown"),
        ({"match": "flops"}, "--match: unknown"),
        ({"init": "ticket"}, "--init ticket without --to"),
        ({"shape": "transferred"}, "--shape transferred without --guide"),
        ({"to": "a.safetensors"}, "--to means nothing"),
        ({"guide": "a.safetensors"}, "--guide means nothing"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ScratchOptions(checkpoint="a.safetensors", output="b.safetensors", **options)


def refused(folder: Path, name: str, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        scratch(folder, name, **options)
    assert caught.value.hint
    return caught.value.message


def test_checkpoints_that_do_not_fit_are_refused(folder: Path) -> None:
    assert "has no masks" in refused(folder, "cut", init="sparse")
    assert "not the initialisation" in refused(folder, "cut", init="ticket", to="base.epoch1")
    assert "has no masks" in refused(folder, "masked", shape="transferred", guide="cut")
    assert "it has no cuts" in refused(folder, "cut", shape="transferred", guide="masked")
    make(folder, "small", "vgg11", {"features.0": 0.5})
    assert "5 stages of equally large maps there, 3 here" in refused(folder, "cut", shape="transferred", guide="small")


def test_a_run_without_epochs_needs_them(folder: Path) -> None:
    source = load(folder, "cut")
    source.sidecar.history[0].options["training"]["epochs"] = 0
    checkpoints.save(source, folder / "never.safetensors")
    assert "has no epochs" in refused(folder, "never", epochs=None)
    assert training(scratch(folder, "never", epochs=1)[0]).epochs == 1


def test_masks_transfer_between_networks(folder: Path) -> None:
    guide, target = load(folder, "masked"), load(folder, "base")
    everything = {name: torch.ones(mask.shape, dtype=torch.bool) for name, mask in guide.sidecar.masks.items()}
    target.sidecar.masks = {name: pack_mask(mask) for name, mask in everything.items()}
    checkpoints.save(target, folder / "whole.safetensors")
    initial, _ = scratch(folder, "whole", shape="transferred", guide="masked")
    for name, mask in guide.sidecar.masks.items():  # one convolution a stage: as many weights at each position
        if name.startswith("conv"):
            ours, theirs = (unpack_mask(m).sum((0, 1)) for m in (initial.sidecar.masks[name], mask))
            assert torch.equal(ours, theirs)


def test_results_are_numbers_for_programs_and_lines_for_people(folder: Path) -> None:
    _, result = scratch(folder, "cut", budget="B")
    data = json.loads(json.dumps(result.data()))
    assert (data["epochs"], data["trained"], data["params"]) == (12, False, 15_738)
    assert "12 epochs; the large network has 3.11 x its MACs" in result.text()
