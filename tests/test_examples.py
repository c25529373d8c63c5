"""The example of a comparison in Make: its commands, one real run, and how it goes on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prunecli.methods import METHODS

FOLDER = Path(__file__).parent.parent
COMPARE = FOLDER / "examples" / "compare.mk"
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def make(folder: Path, *arguments: str) -> str:
    """What `make` prints; the working tree's prunecli is the one that it runs."""
    python = f"PRUNECLI={sys.executable} -m prunecli"
    command = ["make", "--no-print-directory", "-f", str(COMPARE), python, *arguments]
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL")}
    environment |= {"PYTHONPATH": str(FOLDER)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_every_method_gets_every_sparsity_and_the_same_epochs(tmp_path: Path) -> None:
    printed = make(
        tmp_path, "-n", "METHODS=l1 swd", "SPARSITIES=0.5 0.9", "EPOCHS=7", "OPTIONS_swd=--method-arg a_max=9"
    )
    commands = [line.partition("prunecli ")[2] for line in printed.splitlines() if " -m prunecli " in line]
    assert [command.partition(" ")[0] for command in commands].count("train") == 1
    for share in ("0.5", "0.9"):
        assert f"prune comparison/base.safetensors --method l1 --sparsity {share}" in printed
        assert f"finetune comparison/l1-{share}-cut.safetensors --epochs 7 " in printed
        assert (
            f"prune comparison/base.safetensors --method swd --sparsity {share} --method-arg a_max=9 --epochs 7 "
            in printed
        )
    assert len(commands) == 1 + 2 * 3 + 1
    assert re.fullmatch(
        r"report \S+base\S+ \S+l1-0.5\S+ \S+l1-0.9\S+ \S+swd-0.5\S+ \S+swd-0.9\S+ --html \S+html > \S+txt", commands[-1]
    )


def test_it_knows_which_methods_need_fine_tuning() -> None:
    (listed,) = re.findall(r"^ONE_SHOT = (.*)$", COMPARE.read_text(), re.MULTILINE)
    assert set(listed.split()) == set(METHODS)


def test_it_runs_and_goes_on_where_something_is_missing(tmp_path: Path) -> None:
    small = ("METHODS=swd", "SPARSITIES=0.5", "EPOCHS=1", "OUT=x")
    make(tmp_path, *small)
    folder = tmp_path / "x"
    assert {"base", "swd-0.5"} <= {path.stem for path in folder.glob("*.safetensors")}
    assert "swd-0.5" in (folder / "report.txt").read_text()
    assert "Pruning while training" in (folder / "report.html").read_text()
    assert "prunecli" not in make(tmp_path, *small)
    (folder / "swd-0.5.json").unlink()
    again = [line.partition(" -m prunecli ")[2].split() for line in make(tmp_path, "-n", *small).splitlines()]
    assert [words[0] for words in again if words] == ["prune", "report"]
