"""Training runs: stopped by signals, masks enforced, failures that keep what was saved, what is recorded."""

from __future__ import annotations

import dataclasses
import hashlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import prunecli
from prunecli import checkpoint as checkpoints
from prunecli.checkpoint import Checkpoint, pack_mask
from prunecli.cli.boundary import run
from prunecli.errors import DamagedError, Interrupted, PruneError, UsageError
from prunecli.options.train import FinetuneOptions, TrainOptions
from prunecli.progress import Silent
from prunecli.reporting.lineage import chain

TRAIN = TrainOptions(
    arch="lenet5", data="digits", epochs=2, batch_size=256, keep="0,1", threads=1, output="x.safetensors", augment=True
)


def pair(path: Path) -> tuple[bytes, bytes]:
    return path.read_bytes(), path.with_suffix(".json").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_resumable_checkpoint_first(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "prunecli", "train", "--arch", "lenet5", "--data", "digits", "--epochs", "500"]
    command += ["--threads", "1", "-o", str(tmp_path / "x.safetensors")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = process.stderr.readline()  # an epoch is over
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(30) == 128 + number
    assert first.startswith("epoch 1/500")
    assert "error: interrupted at epoch" in rest
    assert "--resume" in rest
    assert "Traceback" not in rest
    saved = checkpoints.load(tmp_path / "x.partial.safetensors").sidecar.training
    assert saved is not None
    assert 1 <= saved.epoch < 500
    assert not (tmp_path / "x.safetensors").exists()


class SecondCommand(Silent):
    """Gives the command again while it runs."""

    def __init__(self, options: TrainOptions) -> None:
        self.options = options
        self.refused = 0

    def __call__(self, text: str) -> None:
        with pytest.raises(UsageError, match="another process is at work on it"):
            prunecli.train(self.options)
        self.refused += 1


def test_two_commands_at_once_do_not_share_an_output(tmp_path: Path) -> None:
    options = dataclasses.replace(TRAIN, keep="", output=str(tmp_path / "x.safetensors"))
    (tmp_path / "x.lock").touch()  # of a process that was killed
    prunecli.train(options, second := SecondCommand(options))
    assert second.refused == 2
    assert {path.name for path in tmp_path.iterdir()} == {"x.safetensors", "x.json"}


class PressAtScore(Silent):
    """Presses Ctrl-C when an epoch is scored, which is when its line is said."""

    def __init__(self, epoch: int) -> None:
        self.line = f"epoch {epoch}/"

    def __call__(self, text: str) -> None:
        if text.startswith(self.line):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_signal_while_an_epoch_is_scored_stops_the_run(tmp_path: Path, epoch: int) -> None:
    options = dataclasses.replace(TRAIN, keep="", output=str(tmp_path / "x.safetensors"))
    with pytest.raises(Interrupted, match="end of epoch 2" if epoch == 2 else "epoch 2, step 0"):
        prunecli.train(options, PressAtScore(epoch))
    assert not (tmp_path / "x.safetensors").exists()
    prunecli.train(dataclasses.replace(options, resume=True))
    prunecli.train(dataclasses.replace(options, output=str(tmp_path / "whole.safetensors")))
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_second_signal_ends_the_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: object) -> None:  # the second Ctrl-C while the first one's checkpoint is written
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("prunecli.training.saving.Saving.save", save)
    with pytest.raises(KeyboardInterrupt):
        prunecli.train(dataclasses.replace(TRAIN, keep="", output=str(tmp_path / "x.safetensors")), PressAtScore(1))
    assert list(tmp_path.iterdir()) == []


def test_a_diverging_run_says_where_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    options = dataclasses.replace(
        TRAIN, output=str(tmp_path / "x.safetensors"), lr=1e6, schedule="constant", warmup=0.5, save_every=1, epochs=9
    )
    with pytest.raises(PruneError, match=r"loss is (nan|inf) at step \d+ of epoch \d+, learning rate"):
        prunecli.train(options)
    assert not (tmp_path / "x.safetensors").exists()
    checkpoints.load(tmp_path / "x.partial.safetensors")  # finite, or loading would refuse it


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    prunecli.train(dataclasses.replace(TRAIN, output=str(path), epochs=4, keep="1", lr=0.02))
    return path


def masked(base: Path, path: Path) -> Checkpoint:
    """`base` with half of conv2's weights masked, and momentum that would revive them."""
    loaded = checkpoints.load(base)
    weight = loaded.weights["conv2.weight"]
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    loaded.weights["conv2.weight"] = weight * mask
    loaded.sidecar.masks = {"conv2.weight": pack_mask(mask)}
    checkpoints.save(loaded, path)
    return loaded


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_finetuning_keeps_masked_weights_and_their_state_at_zero(base: Path, tmp_path: Path, optimizer: str) -> None:
    before = masked(base, tmp_path / "masked.safetensors")
    mask = checkpoints.unpack_mask(before.sidecar.masks["conv2.weight"])
    options = FinetuneOptions(
        checkpoint=str(tmp_path / "masked.safetensors"),
        output=str(tmp_path / "tuned.safetensors"),
        epochs=1,
        optimizer=optimizer,
        carry=True,
        threads=1,
    )
    prunecli.finetune(options)
    tuned = checkpoints.load(tmp_path / "tuned.safetensors")
    weight = tuned.weights["conv2.weight"]
    assert torch.all(weight[~mask] == 0)
    assert torch.all(weight[mask] != before.weights["conv2.weight"][mask])
    assert tuned.sidecar.masks == before.sidecar.masks
    assert tuned.sidecar.optimizer is not None
    for key, array in tuned.sidecar.optimizer.state["conv2.weight"].items():
        state = checkpoints.to_tensor(array)
        if state.shape == mask.shape:
            assert torch.all(state[~mask] == 0), key


def test_finetuning_a_snapshot_goes_on_to_the_end_of_the_same_run(base: Path, tmp_path: Path) -> None:
    prunecli.finetune(
        FinetuneOptions(
            checkpoint=str(base.with_suffix(".epoch1.safetensors")), output=str(tmp_path / "on.safetensors"), threads=1
        )
    )
    assert (tmp_path / "on.safetensors").read_bytes() == base.read_bytes()


def test_finetuning_a_snapshot_as_a_new_run_is_said(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["finetune", str(base.with_suffix(".epoch1.safetensors")), "-o", str(tmp_path / "x.safetensors")]
    assert run([*arguments, "--threads", "1", "--epochs", "1", "--lr", "0.01"]) == 0
    assert "a new run because of --epochs, --lr: the run at epoch 1 of 4 is left" in capsys.readouterr().err
    lineage = chain(checkpoints.load(tmp_path / "x.safetensors").sidecar, {})
    assert lineage[-1].text() == "finetune(epochs=1, optimizer=SGD, lr=0.01)"
    assert run([*arguments, "--threads", "1"]) == 0
    assert "a new run" not in capsys.readouterr().err
    lineage = chain(checkpoints.load(tmp_path / "x.safetensors").sidecar, {})
    assert "lr=0.02" in lineage[-1].text()  # the base rate, not that of the moment


def test_finetuning_a_finished_run_begins_one_at_a_low_constant_rate(base: Path, tmp_path: Path) -> None:
    prunecli.finetune(
        FinetuneOptions(checkpoint=str(base), output=str(tmp_path / "on.safetensors"), epochs=1, threads=1)
    )
    spec = checkpoints.load(tmp_path / "on.safetensors").sidecar.training
    assert spec is not None
    assert spec.schedule.kind == "constant"
    assert spec.lr == pytest.approx(0.02 * 0.1)


def test_the_whole_accuracy_is_recorded_with_its_split(base: Path) -> None:
    metrics = checkpoints.load(base).sidecar.metrics
    assert metrics.split == "test"
    assert metrics.last is not None
    assert metrics.best is not None
    assert len(metrics.curve) == 4
    assert metrics.best.values["top1"] == max(log.score["top1"] for log in metrics.curve if log.score)
    network, loaded = prunecli.load(base)
    from prunecli import training

    data = training.open_data(loaded.sidecar.data, TRAIN, (1, 32, 32))
    assert training.evaluate(network, data.test)["top1"] == pytest.approx(metrics.last.values["top1"])


def test_validation_examples_are_held_out_and_named(tmp_path: Path) -> None:
    prunecli.train(dataclasses.replace(TRAIN, output=str(tmp_path / "x.safetensors"), epochs=1, keep="", val=0.25))
    sidecar = checkpoints.load(tmp_path / "x.safetensors").sidecar
    metrics = sidecar.metrics
    assert metrics.split == "val"
    assert sidecar.data is not None
    assert sidecar.data.val == 0.25
    assert metrics.last is not None
    assert metrics.test is not None
    assert metrics.test.values != metrics.last.values
    network, _ = prunecli.load(tmp_path / "x.safetensors")
    from prunecli import training

    data = training.open_data(sidecar.data, FinetuneOptions(checkpoint="", output="y.safetensors"), (1, 32, 32))
    assert data.val is not None
    for split, score in ((data.val, metrics.last), (data.test, metrics.test)):
        assert training.evaluate(network, split) == pytest.approx(score.values)
    assert sidecar.history[-1].score == metrics.last.values


def test_mixed_precision_trains_and_keeps_fp32_weights(tmp_path: Path) -> None:
    prunecli.train(dataclasses.replace(TRAIN, output=str(tmp_path / "x.safetensors"), precision="bf16", keep=""))
    loaded = checkpoints.load(tmp_path / "x.safetensors")
    assert {t.dtype for t in loaded.weights.values()} == {torch.float32}
    assert loaded.sidecar.metrics.curve[1].train["loss"] < loaded.sidecar.metrics.curve[0].train["loss"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_init_takes_weights_of_other_programs(base: Path, tmp_path: Path, suffix: str) -> None:
    weights = {name: tensor.clone() for name, tensor in checkpoints.load(base).weights.items()}
    given = tmp_path / ("given" + suffix)
    if suffix == ".pt":
        torch.save({"state_dict": {"module." + k: v for k, v in weights.items()}}, given)
    else:
        given.write_bytes(base.read_bytes())
    prunecli.train(
        dataclasses.replace(TRAIN, init=str(given), epochs=0, keep="", output=str(tmp_path / "x.safetensors"))
    )
    written = checkpoints.load(tmp_path / "x.safetensors").weights
    assert all(torch.equal(written[name], weights[name]) for name in weights)


def test_the_history_tells_how_to_do_a_step_again(base: Path, tmp_path: Path) -> None:
    (tmp_path / "given.safetensors").write_bytes(base.read_bytes())
    prunecli.train(
        dataclasses.replace(
            TRAIN, init=str(tmp_path / "given.safetensors"), epochs=0, keep="", val=0.5, arch_arg=("num_classes=10",),
            data_arg=("pad=1",), seed=7, output=str(tmp_path / "x.safetensors"),
        )
    )  # fmt: skip
    (step,) = checkpoints.load(tmp_path / "x.safetensors").sidecar.history
    assert step.options["arch"] == "lenet5"
    assert step.options["arch_arg"] == ["num_classes=10"]
    assert step.options["init"] == hashlib.sha256(base.read_bytes()).hexdigest()
    assert step.options["data"] == {"name": "digits", "dir": None, "args": {"pad": 1}, "val": 0.5}
    assert step.options["training"]["seed"] == 7
    assert str(tmp_path) not in (tmp_path / "x.json").read_text()


def test_init_of_another_network_names_the_difference(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"conv1.weight has shape"):
        prunecli.train(
            dataclasses.replace(TRAIN, arch="resnet20", init=str(base), keep="", output=str(tmp_path / "x.safetensors"))
        )


def test_equal_runs_write_equal_bytes(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    prunecli.train(dataclasses.replace(TRAIN, output=str(path), epochs=4, keep="1", lr=0.02))
    assert pair(path) == pair(base)


def test_interrupted_without_a_place_to_save_writes_nothing(base: Path) -> None:
    from prunecli import training

    loaded = checkpoints.load(base.with_suffix(".epoch1.safetensors"))
    data = training.open_data(loaded.sidecar.data, TRAIN, (1, 32, 32))

    class Press(Silent):
        def status(self, text: str) -> None:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as caught:
        training.fit(loaded, data, TRAIN, say=Press())
    assert caught.value.exit_code == 130


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"groups": [{"lr": -1.0}]}, "learning rate"),
        ({"groups": [{"momentum": None}]}, "wrong options"),
        ({"state": "exp_avg"}, "expected momentum_buffer"),
        ({"rng": "uint8"}, "random state"),
        ({"rng": "float32"}, "random state"),
    ],
)
def test_a_run_that_torch_would_choke_on_is_damage(base: Path, part: dict[str, Any], words: str) -> None:
    from prunecli import training

    loaded = checkpoints.load(base.with_suffix(".epoch1.safetensors"))
    sidecar = loaded.sidecar
    assert sidecar.optimizer is not None
    assert sidecar.training is not None
    for group, options in zip(sidecar.optimizer.groups, part.get("groups", []), strict=False):
        group.options |= options
    if "state" in part:
        for state in sidecar.optimizer.state.values():
            state[part["state"]] = state.pop("momentum_buffer")
    if "rng" in part:
        sidecar.training.rng = {"cpu": checkpoints.to_array(torch.zeros(3, dtype=getattr(torch, part["rng"])))}
    data = training.open_data(sidecar.data, TRAIN, (1, 32, 32))
    with pytest.raises(DamagedError, match=words):
        training.fit(loaded, data, TRAIN)


def test_data_of_more_classes_than_the_network_has_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "many.py").write_text(
        "import torch\ndef data():\n"
        "    half = torch.randint(0, 255, (12, 1, 32, 32), dtype=torch.uint8), torch.arange(12)\n"
        "    return {'train': half, 'test': half}\n"
    )
    monkeypatch.chdir(tmp_path)
    for command in ("finetune --epochs 1", "prune --method l1 --sparsity 0.5"):
        line = [*command.split(), str(base), "--data", "many:data", "--trust", "many", "-o", "x.safetensors"]
        assert run([*line, "--threads", "1"]) == 2
    assert not Path("x.safetensors").exists()
