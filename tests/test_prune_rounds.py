"""`prune` on data: the score of the result, rounds of pruning and fine-tuning, their interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pruning import prune, write

from prunecli import checkpoint as checkpoints
from prunecli import training
from prunecli.checkpoint import Checkpoint
from prunecli.errors import Interrupted, PruneError, TargetError, UsageError
from prunecli.options import Recipe


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("lenet"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows its data."""
    path = write(tmp_path_factory.mktemp("digits"))
    checkpoint = checkpoints.load(path)
    size = tuple(checkpoint.sidecar.cost.input)
    checkpoint.sidecar.data = training.open_data(None, Recipe(data="digits"), size).info  # type: ignore[arg-type]
    assert checkpoint.sidecar.optimizer
    checkpoint.sidecar.optimizer.state = {}
    checkpoints.save(checkpoint, path)
    return path


def test_the_result_is_scored_unless_told_not_to(digits: Path) -> None:
    score = prune(digits, sparsity=0.5).data()["score"]
    assert score
    assert 0 <= score["top1"] <= 1
    assert prune(digits, sparsity=0.5, no_eval=True).data()["score"] is None


@pytest.mark.parametrize(("method", "schedule"), [("magnitude", "geometric"), ("l1", "linear"), ("l1", "geometric")])
def test_rounds_end_at_the_target(digits: Path, method: str, schedule: str) -> None:
    result = prune(digits, method=method, sparsity=0.7, rounds=3, round_schedule=schedule, finetune_epochs=1)
    at_once = prune(digits, "once", method=method, sparsity=0.7, no_eval=True)
    assert result.after["nonzero_params"] == at_once.after["nonzero_params"]
    assert [(r.before, r.after) for r in result.rows if r.what == "units"] == [
        (r.before, r.after) for r in at_once.rows if r.what == "units"
    ]
    done = checkpoints.load(digits.parent / "out.safetensors")
    assert done.sidecar.training
    assert done.sidecar.training.epoch == 1
    assert not done.sidecar.training.method
    assert [step.command for step in done.sidecar.history] == ["prune"]
    for name, mask in done.sidecar.masks.items():
        assert bool((done.weights[name][~checkpoints.unpack_mask(mask)] == 0).all())
    assert not list(digits.parent.glob("*.partial.*"))


@pytest.mark.parametrize(("method", "rounds"), [("l1", 2), ("bn-scale", 3), ("magnitude", 2)])
def test_rounds_of_a_network_with_batch_norm_start_from_its_input(tmp_path: Path, method: str, rounds: int) -> None:
    path = write(tmp_path, "resnet20")
    result = prune(path, method=method, sparsity=0.5, rounds=rounds)
    at_once = prune(path, "once", method=method, sparsity=0.5)
    assert [row.after for row in result.rows] == [row.after for row in at_once.rows]


def test_rounds_of_a_budget_meet_it(digits: Path) -> None:
    result = prune(digits, max_macs="40%", rounds=2, finetune_epochs=1, scope="global")
    assert 0.35 * result.before["macs"] < result.after["macs"] <= 0.4 * result.before["macs"]


def test_an_impossible_last_round_fails_before_the_first(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(TargetError):
        prune(digits, max_params="3", rounds=5, finetune_epochs=3)


def test_fine_tuning_without_data_is_refused(lenet: Path) -> None:
    with pytest.raises(PruneError, match="data"):
        prune(lenet, sparsity=0.5, finetune_epochs=1)


@pytest.mark.parametrize("method", ["l1", "magnitude"])
def test_an_interrupted_round_resumes_to_the_same_bytes(
    digits: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"method": method, "sparsity": 0.6, "rounds": 3, "finetune_epochs": 1}
    straight = prune(digits, "straight", **options).checkpoint.sha256
    fit, calls = training.fit, []

    def interrupted(
        checkpoint: Checkpoint, data: Any, execution: Any, *, saving: training.Saving, **rest: Any
    ) -> Checkpoint:
        calls.append(checkpoint)
        if len(calls) == 2:
            checkpoints.save(checkpoint, saving.partial)
            raise Interrupted("stopped", "go on", 15)
        return fit(checkpoint, data, execution, saving=saving, **rest)

    monkeypatch.setattr(training, "fit", interrupted)
    with pytest.raises(Interrupted):
        prune(digits, "resumed", **options)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="--resume"):
        prune(digits, "resumed", resume=True, **options | {"sparsity": 0.5})
    resumed = prune(digits, "resumed", resume=True, **options)
    assert resumed.checkpoint.sha256 == straight
    lines = [(digits.parent / f"{n}.json").read_text().replace(n, "X").splitlines() for n in ("straight", "resumed")]
    assert [a for a, b in zip(*lines, strict=True) if a != b and "checksum" not in a] == []
    assert not list(digits.parent.glob("*.partial.*"))
