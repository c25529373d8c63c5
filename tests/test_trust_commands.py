"""No command runs code that a checkpoint names, unless its module is trusted; what needs none runs without."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import prunecli
from prunecli import checkpoint as checkpoints
from prunecli.cli.boundary import run
from prunecli.options.train import TrainOptions


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained LeNet-5 with a snapshot of epoch 1."""
    folder = tmp_path_factory.mktemp("base")
    path = folder / "base.safetensors"
    prunecli.train(
        TrainOptions(
            arch="lenet5", data="digits", epochs=4, batch_size=256, keep="1", threads=1, output=str(path), augment=True
        )
    )
    return path


@pytest.fixture
def foreign(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checkpoints whose architecture and data are code in the current folder, which leaves a file when it is run."""
    (tmp_path / "foreign.py").write_text(
        "from pathlib import Path\nPath('ran').touch()\n"
        "def network(**_): raise AssertionError\ndef data(): raise AssertionError\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("base", "base.epoch1", "x.partial"):
        loaded = checkpoints.load(base.with_name(name.replace("x.partial", "base.epoch1") + ".safetensors"))
        loaded.sidecar.arch.name = "foreign:network"
        assert loaded.sidecar.data is not None
        loaded.sidecar.data.name = "foreign:data"
        checkpoints.save(loaded, f"{name}.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "prune base.safetensors --method l1 --sparsity 0.5 -o x.safetensors",
        "finetune base.safetensors --epochs 1 -o x.safetensors",
        "finetune base.safetensors --epochs 1 --data digits -o x.safetensors",
        "finetune base.epoch1.safetensors --data digits --resume -o x.safetensors",
        "scratch base.safetensors --data digits -o x.safetensors",
        "scratch base.safetensors --epochs 0 -o x.safetensors",
        "export base.safetensors -o x.onnx",
        "report base.safetensors --latency",
        "train --arch lenet5 --data digits --epochs 4 --resume -o x.safetensors",
        "train --arch foreign:network --data digits --epochs 4 --resume -o x.safetensors",
    ],
)
def test_no_command_runs_code_that_a_checkpoint_names(foreign: Path, line: str) -> None:
    assert run([*line.split(), "--threads", "1"]) == 2
    assert not Path("ran").exists()
    assert "foreign" not in sys.modules


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("rewind base.safetensors --to base.epoch1.safetensors -o x.safetensors", 0),
        ("prune base.safetensors --method magnitude --sparsity 0.5 --no-eval -o x.safetensors --threads 1", 0),
        ("report base.safetensors --html x.html", 0),
    ],
)
def test_what_needs_no_code_of_the_user_runs_none(foreign: Path, line: str, code: int) -> None:
    assert run(line.split()) == code
    assert not Path("ran").exists()
    assert "foreign" not in sys.modules
