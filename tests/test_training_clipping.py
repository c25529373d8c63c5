"""Clipped gradients: the length of a step, what is added to it, and a run that would be lost."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import prunecli
from prunecli import checkpoint as checkpoints
from prunecli.errors import PruneError, UsageError
from prunecli.options.prune import PruneOptions
from prunecli.options.train import FinetuneOptions, TrainOptions
from prunecli.progress import Silent

STEP = TrainOptions(  # a single step of plain SGD on all 1,437 digits
    arch="lenet5", data="digits", epochs=1, batch_size=2000, lr=0.1, momentum=0.0, weight_decay=0.0, threads=1,
    schedule="constant", keep="0,1", output="x.safetensors",
)  # fmt: skip


def moved(options: TrainOptions, folder: Path) -> torch.Tensor:
    """What the first epoch adds to the weights."""
    prunecli.train(dataclasses.replace(options, output=str(folder / "x.safetensors")), Silent())
    before, after = (checkpoints.load(folder / f"x.epoch{n}.safetensors").weights for n in (0, 1))
    return torch.cat([(after[name] - before[name]).flatten().double() for name in before])


def test_a_long_gradient_is_scaled_and_a_short_one_is_left(tmp_path: Path) -> None:
    plain = moved(STEP, tmp_path)
    length = float(plain.norm()) / STEP.lr
    clipped = moved(dataclasses.replace(STEP, clip_grad=length / 4), tmp_path)
    assert clipped.norm() == pytest.approx(STEP.lr * length / 4, rel=1e-4)
    assert torch.allclose(clipped, plain / 4, rtol=1e-3, atol=1e-8)
    for norm in (2 * length, 0.0):
        assert torch.equal(moved(dataclasses.replace(STEP, clip_grad=norm), tmp_path), plain)


def test_penalty_and_weight_decay_are_added_to_the_clipped_gradient(tmp_path: Path) -> None:
    swd = dataclasses.replace(STEP, method="swd", sparsity=0.5, method_arg=("mu=1", "a_min=1", "a_max=1.0001"))
    clipped = {"clip_grad": 1e-6}
    penalty = moved(dataclasses.replace(swd, **clipped), tmp_path)
    weights = checkpoints.load(tmp_path / "x.epoch0.safetensors").weights
    kernels = torch.cat([weights[name].flatten() for name in weights if name.endswith("weight")])
    least = kernels.abs().sort().values[: kernels.numel() // 2]
    assert penalty.norm() == pytest.approx(STEP.lr * float(least.norm()), rel=1e-3)
    decayed = moved(dataclasses.replace(STEP, weight_decay=0.5, **clipped), tmp_path)
    whole = torch.cat([t.flatten() for t in weights.values()]).double()
    assert torch.allclose(decayed, -STEP.lr * 0.5 * whole, rtol=1e-4, atol=1e-6)


def test_gradients_of_masked_weights_do_not_count(tmp_path: Path) -> None:
    prunecli.train(dataclasses.replace(STEP, keep="", output=str(tmp_path / "x.safetensors")), Silent())
    masked = {"method": "magnitude", "sparsity": 0.95, "no_eval": True, "output": str(tmp_path / "m.safetensors")}
    prunecli.prune(PruneOptions(checkpoint=str(tmp_path / "x.safetensors"), **masked), Silent())
    steps = {}
    for norm in (0.0, 1.0):
        limit = steps[0.0] * 1.01 if norm else 0.0  # just above what the weights that are left have
        out = tmp_path / f"{norm}.safetensors"
        tune = FinetuneOptions(
            checkpoint=masked["output"], epochs=1, lr=1.0, clip_grad=limit, threads=1, output=str(out)
        )
        prunecli.finetune(tune, Silent())
        before, after = (checkpoints.load(path).weights for path in (masked["output"], out))
        steps[norm] = float(torch.cat([(after[n] - before[n]).flatten() for n in before]).norm())
    assert steps[1.0] == pytest.approx(steps[0.0], rel=1e-5)


def test_a_rate_that_loses_the_loss_is_borne_with_clipping(tmp_path: Path) -> None:
    options = dataclasses.replace(
        STEP, lr=50.0, epochs=3, batch_size=64, keep="", output=str(tmp_path / "x.safetensors")
    )
    with pytest.raises(PruneError) as caught:
        prunecli.train(options, Silent())
    assert "--clip-grad" in caught.value.hint
    prunecli.train(dataclasses.replace(options, clip_grad=0.002), Silent())
    done = checkpoints.load(tmp_path / "x.safetensors").sidecar
    assert done.training
    assert done.training.clip_grad == 0.002
    assert done.metrics.last
    assert done.metrics.last.values["top1"] > 0.5


def test_the_limit_goes_on_and_is_part_of_what_a_resumed_run_must_agree_with(tmp_path: Path) -> None:
    base, tuned = str(tmp_path / "x.safetensors"), str(tmp_path / "tuned.safetensors")
    prunecli.train(dataclasses.replace(STEP, keep="", clip_grad=0.5, output=base), Silent())
    for given, expected in ((None, 0.5), (0.0, 0.0)):
        options = FinetuneOptions(checkpoint=base, epochs=1, clip_grad=given, threads=1, output=tuned)
        prunecli.finetune(options, Silent())
        run = checkpoints.load(tuned).sidecar.training
        assert run
        assert run.clip_grad == expected


@pytest.mark.parametrize("norm", [-1.0, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused(norm: float) -> None:
    with pytest.raises(UsageError, match="--clip-grad"):
        dataclasses.replace(STEP, clip_grad=norm, output="x.safetensors")
