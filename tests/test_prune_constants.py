"""`prune --compensate` and `--recalibrate`: what a cut changes besides the removal itself, and what puts it right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pruning import prune, write

from prunecli import checkpoint as checkpoints
from prunecli import training
from prunecli.options import Recipe


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A resnet20 that knows its data; between two convolutions a third of the scales is zero, and no shift is."""
    path = write(tmp_path_factory.mktemp("slim"), "resnet20", shortcut="projection")
    checkpoint = checkpoints.load(path)
    checkpoint.weights = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
    for name, tensor in checkpoint.weights.items():
        if "bn" in name and name.endswith(".bias"):
            torch.nn.init.uniform_(tensor, 0.1, 0.5)
        elif name.endswith(".bn1.weight"):
            tensor[::3] = 0
    size = tuple(checkpoint.sidecar.cost.input)
    checkpoint.sidecar.data = training.open_data(None, Recipe(data="digits"), size).info  # type: ignore[arg-type]
    checkpoint.sidecar.optimizer = None
    checkpoints.save(checkpoint, path)
    return path


def cut(source: Path, output: str, **options: Any) -> Any:
    options = {"method": "bn-scale", "sparsity": 0.33, "only": ("layer*.conv1",), "no_eval": True} | options
    return prune(source, output, **options)


def test_compensation_keeps_the_function_nearer(slim: Path) -> None:
    plain, helped = cut(slim, "plain"), cut(slim, "helped", compensate=True)
    removed = sum(row.before - row.after for row in helped.rows)
    assert (helped.folded.removed, helped.folded.folded) == (removed, removed)
    assert [row.after for row in plain.rows] == [row.after for row in helped.rows]
    x = torch.randn(4, 3, 32, 32)
    dense, *cuts = (
        checkpoints.build(checkpoints.load(slim.parent / f"{name}.safetensors"))(x)
        for name in (slim.stem, "plain", "helped")
    )
    far, near = ((output - dense).norm() for output in cuts)
    assert near < 0.6 * far
    assert f"{removed} of {removed} removed units added a constant" in helped.text()
    assert any("approximate at the borders" in note for note in helped.notes)  # every convolution pads here
    assert helped.data()["folded"]["approximate"]
    assert plain.data()["folded"] is None


def test_the_dense_checkpoint_is_left_alone_and_the_step_recorded(slim: Path) -> None:
    before = slim.read_bytes()
    cut(slim, "helped", compensate=True)
    assert slim.read_bytes() == before
    options = checkpoints.load(slim.parent / "helped.safetensors").sidecar.history[-1].options
    assert (options["compensate"], options["recalibrate"]) == (True, 0)


def test_without_batch_norm_there_is_nothing_to_fold(tmp_path: Path) -> None:
    result = prune(write(tmp_path), sparsity=0.5, compensate=True)
    assert result.folded.constant == 0
    assert "nothing to fold: none of 113 removed units" in result.text()
    assert not result.notes


def test_rounds_add_up_what_was_folded(slim: Path) -> None:
    at_once, rounds = cut(slim, "once", compensate=True), cut(slim, "rounds", compensate=True, rounds=2)
    assert rounds.folded.removed == at_once.folded.removed
    assert rounds.folded.folded == at_once.folded.folded


def test_recalibrated_statistics_are_those_of_the_cut_network(slim: Path) -> None:
    plain = cut(slim, "plain")
    result = cut(slim, "fresh", recalibrate=3, seed=5, no_eval=False)
    assert result.after == plain.after
    before, fresh = (checkpoints.load(slim.parent / f"{name}.safetensors") for name in ("plain", "fresh"))
    changed = {name for name, tensor in fresh.weights.items() if not torch.equal(tensor, before.weights[name])}
    assert changed == {name for name in fresh.weights if "running" in name or "num_batches" in name}
    assert fresh.weights["bn1.num_batches_tracked"] == 3
    assert result.uncalibrated.last.values["loss"] > result.checkpoint.sidecar.metrics.last.values["loss"]
    told = result.text().splitlines()
    assert [line.split(":")[0].strip() for line in told[-2:]] == ["test before recalibration", "test"]
    data = result.data()
    assert data["score_before_recalibration"] == result.uncalibrated.last.values
    assert data["score"] == fresh.sidecar.metrics.last.values
    entry = fresh.sidecar.history[-1]
    assert entry.options["recalibrate"] == 3
    assert entry.options["data"]["name"] == "digits"


def test_batches_follow_the_seed(slim: Path) -> None:
    def mean(seed: int) -> torch.Tensor:
        cut(slim, "seeded", recalibrate=1, seed=seed)
        return checkpoints.load(slim.parent / "seeded.safetensors").weights["bn1.running_mean"].clone()

    first = mean(1)
    assert torch.equal(first, mean(1))
    assert not torch.equal(first, mean(2))


def test_a_dry_run_computes_no_statistics(slim: Path) -> None:
    result = cut(slim, "never", recalibrate=10**9, dry_run=True)
    assert result.uncalibrated is None
    assert not (slim.parent / "never.safetensors").exists()
