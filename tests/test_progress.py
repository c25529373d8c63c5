"""What a run tells the person who waits: a status as wide as the terminal, lines of short numbers."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
from pathlib import Path
from typing import Any

import pytest
from gradual import Listening

import prunecli
from prunecli.options.train import TrainOptions
from prunecli.progress import Stderr, short


@pytest.mark.parametrize("columns", [60, 100])
def test_a_status_stays_on_one_row_of_the_terminal(columns: int) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(theirs, "w") as stream:
        say = Stderr(stream)
        say.status("x" * 150)
        say("done")
        told = b""
        while not told.endswith(b"done\r\n"):  # which may arrive in parts
            told += os.read(ours, 1000)
    os.close(ours)
    assert told == b"\r\x1b[2K" + b"x" * (columns - 1) + b"\r\x1b[2Kdone\r\n"


def test_numbers_are_short() -> None:
    assert [short(n) for n in (0, 0.00123456, 0.897, 12, 999.4, 999.6, 61_706, 416_520, 1.2e9, 2e-9, 7e25)] == [
        "0", "0.00123", "0.897", "12", "999", "1k", "61.7k", "417k", "1.2G", "2e-09", "7e+25",
    ]  # fmt: skip


def test_a_run_with_a_method_tells_sparsity_macs_and_penalty_in_short_lines(tmp_path: Path) -> None:
    say = Listening()
    options: dict[str, Any] = {"arch": "lenet5", "data": "digits", "epochs": 1, "batch_size": 256, "threads": 1}
    output = str(tmp_path / "x.safetensors")
    prunecli.train(TrainOptions(**options, output=output, method="swd", sparsity=0.9), say)
    epoch, pruned = say.lines
    assert "  sparsity 0  macs 417k  a 10k  penalty " in epoch
    assert "conv" not in epoch
    assert pruned.startswith("pruned  loss ")
    assert pruned.endswith("params 6.38k")
    assert "  sparsity 0.897  macs " in pruned
    assert say.statuses[0].startswith("epoch 1/1  step 1/6  loss ")
    assert "  a 0.6" in say.statuses[0]  # 0.1 * (1e5)^(1/6)
    assert max(map(len, say.lines)) < 120
