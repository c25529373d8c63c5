"""A checkpoint path holds a complete old or a complete new checkpoint, whenever its writer or reader is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("how", "at_least"), [("lines", 500), ("twice", 160), ("random", 120)])
def test_nothing_is_lost_when_processes_are_killed(tmp_path: Path, how: str, at_least: int) -> None:
    root = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, root / "kill_writer.py", tmp_path, how],
        env=os.environ | {"PYTHONPATH": str(root.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= at_least
