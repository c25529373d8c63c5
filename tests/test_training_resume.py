"""Interrupted runs: resumed to the same bytes, refused with other options, told where they begin again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from gradual import KillAt, Killed, Listening

import prunecli
from prunecli import checkpoint as checkpoints
from prunecli.errors import UsageError
from prunecli.options.train import FinetuneOptions, TrainOptions

TRAIN = TrainOptions(
    arch="lenet5", data="digits", epochs=2, batch_size=256, keep="0,1", threads=1, output="x.safetensors", augment=True
)


def pair(path: Path) -> tuple[bytes, bytes]:
    return path.read_bytes(), path.with_suffix(".json").read_bytes()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    prunecli.train(dataclasses.replace(TRAIN, output=str(path), epochs=0, keep=""))
    return path


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("steps", [1, 4, 6, 9])
def test_a_killed_and_resumed_run_ends_with_the_same_bytes(tmp_path: Path, optimizer: str, steps: int) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    options = dataclasses.replace(TRAIN, optimizer=optimizer, lr=0.01, save_every=2)
    whole = dataclasses.replace(options, output=str(tmp_path / "a" / "x.safetensors"))
    halted = dataclasses.replace(options, output=str(tmp_path / "b" / "x.safetensors"), resume=True)
    prunecli.train(whole)
    with pytest.raises(Killed):
        prunecli.train(halted, KillAt(steps))
    assert (tmp_path / "b" / "x.partial.safetensors").exists() == (steps >= 2)
    prunecli.train(halted)
    for name in ("x.safetensors", "x.epoch0.safetensors", "x.epoch1.safetensors"):
        assert pair(tmp_path / "a" / name) == pair(tmp_path / "b" / name)
    assert not list(tmp_path.glob("*/*partial*"))


def test_dropout_draws_the_same_numbers_after_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dropping.py").write_text(
        "from torch import nn\n"
        "def network():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    options = dataclasses.replace(
        TRAIN, arch="dropping:network", trust=("dropping",), image_size=8, save_every=1, keep=""
    )
    prunecli.train(dataclasses.replace(options, output="whole.safetensors"))
    with pytest.raises(Killed):
        prunecli.train(dataclasses.replace(options, output="halted.safetensors"), KillAt(7))
    prunecli.train(dataclasses.replace(options, output="halted.safetensors", resume=True))
    assert Path("whole.safetensors").read_bytes() == Path("halted.safetensors").read_bytes()


def test_resuming_with_other_options_is_refused(tmp_path: Path) -> None:
    options = dataclasses.replace(TRAIN, output=str(tmp_path / "x.safetensors"), save_every=2)
    with pytest.raises(Killed):
        prunecli.train(options, KillAt(5))
    before = pair(tmp_path / "x.partial.safetensors")
    with pytest.raises(UsageError, match=r": lr 0\.05 there, 0\.3 now$"):
        prunecli.train(dataclasses.replace(options, resume=True, lr=0.3))
    assert pair(tmp_path / "x.partial.safetensors") == before
    assert not (tmp_path / "x.safetensors").exists()


def test_resuming_a_complete_run_trains_nothing(tmp_path: Path) -> None:
    options = dataclasses.replace(TRAIN, output=str(tmp_path / "x.safetensors"))
    prunecli.train(options)
    before = (tmp_path / "x.safetensors").stat().st_mtime_ns
    result = prunecli.train(dataclasses.replace(options, resume=True), KillAt(0))
    assert "already complete" in result.notes[0]
    assert (tmp_path / "x.safetensors").stat().st_mtime_ns == before
    heard = Listening()
    assert prunecli.train(dataclasses.replace(options, resume=True, lr=0.3, epochs=1), heard).notes == ()
    assert heard.lines[0].endswith("is of a run with other options (lr 0.05 there, 0.3 now); a new run begins")
    assert len(checkpoints.load(tmp_path / "x.safetensors").sidecar.metrics.curve) == 1


def test_an_interrupted_run_of_another_command_or_without_resume_is_told(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    options = dataclasses.replace(TRAIN, keep="", output=str(path), save_every=1)
    with pytest.raises(Killed):
        prunecli.train(options, KillAt(3))
    with pytest.raises(UsageError, match="train there, finetune now"):
        prunecli.finetune(FinetuneOptions(checkpoint=str(base), output=str(path), epochs=1, threads=1, resume=True))
    prunecli.train(options, say := Listening())
    assert say.lines[0].endswith("an interrupted run, is begun again; --resume would go on with it")
