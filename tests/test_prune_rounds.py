"""`prune` on data: the score of the result, rounds of pruning and fine-tuning, their interruption."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pruning import prune, write

from prunecli import checkpoint as checkpoints
from prunecli import training
from prunecli.checkpoint import Checkpoint
from prunecli.errors import Interrupted, PruneError, TargetError, UsageError
from prunecli.options import Recipe
from prunecli.sidecar import Method


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
    assert done.sidecar.training.method == Method()
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


def test_rounds_of_masks_start_from_what_is_masked_already(lenet: Path) -> None:
    prune(lenet, "sparse", method="magnitude", sparsity=0.8)
    result = prune(lenet.parent / "sparse.safetensors", "sparser", method="magnitude", max_params="5k", rounds=2)
    assert result.after["nonzero_params"] == 5_000
    assert not any("masked before" in note for note in result.notes)  # no round asks for less than there is


@pytest.mark.parametrize("options", [{"only": ("conv1",)}, {}, {"scope": "global"}, {"method": "fpgm"}])
def test_rounds_go_on_where_a_layer_is_down_to_one_unit(lenet: Path, options: dict[str, Any]) -> None:
    result = prune(lenet, sparsity=0.95, rounds=10, **options)
    at_once = prune(lenet, "once", sparsity=0.95, **options)
    assert [row.name for row in result.rows] == [row.name for row in at_once.rows]
    assert sum(row.after for row in result.rows) == sum(row.after for row in at_once.rows)
    assert min(row.after for row in result.rows) == 1
    weights = checkpoints.load(lenet.parent / "out.safetensors").weights
    for member in (member for row in result.rows for member in row.members):
        assert member.after == weights[member.tensor].shape[member.axis]


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


KILLABLE = """
import sys
from prunecli.cli.boundary import main
from prunecli.training import saving
saving.EPOCH_SECONDS = 0.0  # saves after every epoch
main(sys.argv[1:])
"""


def test_a_killed_process_resumes_to_the_same_bytes(digits: Path) -> None:
    """Notes of earlier rounds are not lost, and pruning a pruned round again adds none."""
    options = {"method": "l1", "sparsity": 0.95, "rounds": 3, "finetune_epochs": 3, "only": ("conv*",), "threads": 1}
    straight = prune(digits, "straight", **options)
    assert any("never loses all: one unit of" in note for note in straight.notes)
    output = digits.parent / "killed.safetensors"
    command = [sys.executable, "-c", KILLABLE, "prune", str(digits), "-o", str(output), "--threads", "1"]
    command += ["--method", "l1", "--sparsity", "0.95", "--rounds", "3", "--finetune-epochs", "3", "--only", "conv*"]
    partial = output.with_suffix(".partial.json")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (partial.exists() and '"prune_round": 2' in partial.read_text()):
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not output.exists()
    resumed = prune(digits, "killed", resume=True, **options)
    assert resumed.notes == straight.notes
    assert resumed.rows == straight.rows
    names = ("straight", "killed")
    first, second = ((digits.parent / f"{name}.safetensors").read_bytes() for name in names)
    assert first == second
    lines = [(digits.parent / f"{n}.json").read_text().replace(n, "X").splitlines() for n in names]
    assert [a for a, b in zip(*lines, strict=True) if a != b and "checksum" not in a] == []


def test_a_partial_run_with_a_made_up_round_is_refused(digits: Path) -> None:
    options = {"method": "l1", "sparsity": 0.5, "finetune_epochs": 1}
    made = checkpoints.load(Path(str(prune(digits, "made", **options).path)))
    made.sidecar.history[-1].cost, made.sidecar.history[-1].score = {}, {}  # as while it was under way
    assert made.sidecar.training
    for number in (-1, 2, "one", None, 1):
        made.sidecar.training.method = Method(state={"prune_round": number})
        checkpoints.save(made, digits.parent / "made.partial.safetensors")
        if number == 1:
            prune(digits, "made", resume=True, **options)
            return
        with pytest.raises(UsageError, match="--resume"):
            prune(digits, "made", resume=True, **options)
