"""Selective weight decay: its step in closed form, its masks, its warning."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from gradual import Listening, check_resumed, gradients, live, prune, train

from prunecli.checkpoint import unpack_mask
from prunecli.errors import UsageError


def test_the_penalty_is_a_mu_w_on_exactly_the_smallest_weights(tmp_path: Path) -> None:
    run = live(tmp_path, "swd", {"a_min": 1.0, "a_max": 16.0, "mu": 0.25}, {"sparsity": 0.5})
    run.training.epoch = 1  # of 4: a = 1 * 16^(1/4) = 2
    gradients(run)
    run.hook.after_backward(run)
    weights = {n: p for n, p in run.network.named_parameters() if n.endswith("weight")}
    ranked = sorted(float(w.detach().abs()) for p in weights.values() for w in p.flatten())
    threshold = ranked[len(ranked) // 2]
    for name, parameter in run.network.named_parameters():
        small = parameter.detach().abs() < threshold if name in weights else torch.zeros_like(parameter, dtype=bool)
        assert torch.allclose(parameter.grad, 2 * 0.25 * parameter.detach() * small), name


def test_of_equal_weights_exactly_the_count_is_penalised(tmp_path: Path) -> None:
    run = live(tmp_path, "swd", {"a_min": 1.0, "a_max": 1.0, "mu": 1.0}, {"sparsity": 0.3})
    for parameter in run.network.parameters():
        parameter.data.fill_(0.5)
    gradients(run)
    run.hook.after_backward(run)
    weights = [p for n, p in run.network.named_parameters() if n.endswith("weight")]
    assert sum(int(p.grad.count_nonzero()) for p in weights) == math.floor(sum(p.numel() for p in weights) * 0.3)


def test_weights_that_do_not_train_are_left_out_of_the_penalty(tmp_path: Path) -> None:
    run = live(tmp_path, "swd", {"a_min": 1.0, "a_max": 1.0, "mu": 0.5}, {"sparsity": 0.9})
    gradients(run)
    run.network.conv1.weight.grad = None  # as of a frozen weight
    run.hook.after_backward(run)
    assert run.network.conv1.weight.grad is None
    weight = run.network.fc1.weight
    found = weight.grad != 0
    assert found.any()
    assert torch.equal(weight.grad[found], 0.5 * weight.detach()[found])


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_the_end_masks_the_share_and_the_best_score_is_that_of_the_pruned_network(tmp_path: Path, share: float) -> None:
    sidecar = train(tmp_path, method="swd", sparsity=share, method_arg=("a_max=1000",)).sidecar
    weights = sum(math.prod(mask.shape) for mask in sidecar.masks.values())
    assert sum(mask.kept for mask in sidecar.masks.values()) == weights - math.floor(weights * share + 1e-9)
    assert sidecar.metrics.last == sidecar.metrics.best
    assert [log.method["a"] for log in sidecar.metrics.curve] == pytest.approx([10, 1000])
    assert sidecar.training
    assert sidecar.training.method.name is None


@pytest.mark.parametrize("steps", [2, 6, 9])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, steps: int) -> None:
    check_resumed(tmp_path, steps, method="swd", sparsity=0.8)


def test_masks_of_a_resumed_run_are_in_the_same_order(tmp_path: Path) -> None:
    small = {"arch": "resnet20", "arch_arg": ("width=4", "in_channels=1"), "image_size": 8}  # not in order of names
    check_resumed(tmp_path, 8, method="swd", sparsity=0.8, **small)


def test_a_trained_network_is_pruned_while_it_trains_on_and_old_masks_stay(tmp_path: Path) -> None:
    train(tmp_path)
    base = tmp_path / "x.safetensors"
    first = prune(base, method="swd", sparsity=0.5, only=("conv3",), output=str(tmp_path / "first.safetensors"))
    assert list(first.sidecar.masks) == ["conv3.weight"]
    second = prune(tmp_path / "first.safetensors", method="swd", sparsity=0.2, skip=("conv3",))
    old, new = (unpack_mask(c.sidecar.masks["conv3.weight"]) for c in (first, second))
    assert torch.equal(old, new)
    assert bool((second.weights["conv3.weight"][~old] == 0).all())
    assert [step.command for step in second.sidecar.history] == ["train", "prune", "prune"]


def test_biases_are_ranked_with_the_weights_where_they_are_wanted(tmp_path: Path) -> None:
    sidecar = train(tmp_path, method="swd", sparsity=0.5, method_arg=("biases=true",)).sidecar
    assert {name.rpartition(".")[2] for name in sidecar.masks} == {"weight", "bias"}
    size = sum(math.prod(mask.shape) for mask in sidecar.masks.values())
    assert size == 61706  # all parameters of LeNet-5
    assert sum(mask.kept for mask in sidecar.masks.values()) == size - size // 2


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"optimizer": "adamw", "lr": 0.001}, {"nesterov": True}])
def test_it_works_in_mixed_precision_and_with_other_optimizers(tmp_path: Path, options: dict[str, Any]) -> None:
    result = train(tmp_path, **({"method": "swd", "sparsity": 0.5, "method_arg": ("mu=5e-4",)} | options))
    for name, mask in result.sidecar.masks.items():
        assert bool((result.weights[name][~unpack_mask(mask)] == 0).all())


def test_an_unstable_strength_is_warned_of_with_the_largest_safe_one(tmp_path: Path) -> None:
    run = live(tmp_path, "swd", {"a_max": 1e9}, {"sparsity": 0.5}, schedule="constant", weight_decay=5e-4)
    say = Listening()
    run.hook.begin(run, say)
    safe = 3.8 / (0.05 * 5e-4)  # lr mu a < 2 (1 + momentum), reached at the last step
    assert len(say.lines) == 1
    assert float(say.lines[0].rpartition(" is ")[2]) == pytest.approx(safe, rel=0.01)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method_arg": ("a_max=0.01",)}, "below a_min"),
        ({"method_arg": ("mu=-1",)}, "mu"),
        ({"method_arg": ("amax=1",)}, "'a_max'"),
        ({"weight_decay": 0.0}, "mu=5e-4"),
        ({"sparsity": None}, "--sparsity is missing"),
        ({"max_macs": "50%"}, "--max-macs"),
        ({"ratios": "conv1=0.5"}, "--ratios"),
        ({"only": ("nothing",)}, "nothing"),
    ],
)
def test_what_it_does_not_take_is_refused_before_training(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as error:
        train(tmp_path, **({"method": "swd", "sparsity": 0.5} | options))
    assert words in error.value.message + error.value.hint
    assert not list(tmp_path.iterdir())


def test_a_layer_whose_weights_are_all_among_the_smallest_keeps_the_largest_and_the_count_is_exact(
    tmp_path: Path,
) -> None:
    run, say = live(tmp_path, "swd", {}, {"sparsity": 0.9}), Listening()
    run.hook.say = say
    run.network.conv2.weight.data.mul_(1e-6)
    largest = run.network.conv2.weight.detach().abs().argmax()
    run.hook.end(run)
    assert run.masks["conv2.weight"].flatten().nonzero().flatten().tolist() == [int(largest)]
    sizes = [mask.numel() for mask in run.masks.values()]
    assert sum(int(mask.sum()) for mask in run.masks.values()) == sum(sizes) - math.floor(0.9 * sum(sizes))
    assert say.lines == ["warning: conv2: all weights are small, the largest stays"]


def test_without_an_epoch_the_removal_is_compared_with_the_network_as_it_was(tmp_path: Path) -> None:
    base = train(tmp_path)
    prune(tmp_path / "x.safetensors", say := Listening(), method="swd", sparsity=0.9, epochs=0)
    assert base.sidecar.metrics.last
    loss = base.sidecar.metrics.last.values["loss"]
    line = next(line for line in say.lines if line.startswith("pruned"))
    assert f"loss {loss:.4f} -> " in line
    assert f"-> {loss:.4f}" not in line
