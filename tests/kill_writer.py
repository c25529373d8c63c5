"""Kills processes that save and load a checkpoint, at every line of their code and at random moments, and looks after.

A process of its own, without torch, so that forking hundreds of victims is cheap. Prints how many were killed; exits
with a traceback at the first checkpoint that is neither the old one nor the new one.

    python kill_writer.py FOLDER lines|twice|random
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from prunecli import encoding, files, tensorfile
from prunecli.sidecar import Arch, Array, Cost, Optimizer, ParamGroup, Sidecar
from prunecli.tensorfile import RawTensor

# name: (length of the tensors, value in them, whether the optimizer state has a file of its own)
VERSIONS = {
    "plain": (3, 1, False),
    "stateful": (700, 2, True),
    "stateful2": (50, 3, True),
    "tiny": (1, 4, False),
}
TRACED = {files.__file__, tensorfile.__file__}


def write(version: str, path: Path) -> None:
    """Save a version of the checkpoint."""
    length, value, own_file = VERSIONS[version]
    data = bytes([value]) * length
    weights = {name: RawTensor("uint8", (length,), memoryview(data)) for name in ("w", "b")}
    momentum = Array(dtype="uint8", shape=[length], data=None if own_file else data)
    optimizer = Optimizer(name="SGD", groups=[ParamGroup(params=["w"])], state={"w": {"momentum_buffer": momentum}})
    sidecar = Sidecar(arch=Arch(name=version), cost=Cost(input=[1]), optimizer=optimizer)
    state = {"optimizer/w/momentum_buffer": weights["w"]} if own_file else {}
    files.write_pair(path, sidecar, weights, state)


def version_of(path: Path, *, foreign: bool = True) -> str:
    """Which version a checkpoint holds; fails unless all of it is of that version, for foreign readers too."""
    pair = files.open_pair(path)
    version = pair.sidecar.arch.name
    length, value, own_file = VERSIONS[version]
    tensors = {**pair.weights, **(pair.state or {})}
    assert len(tensors) == 2 + own_file
    if foreign:
        tensors |= {f"again {k}": v for k, v in tensorfile.parse(memoryview(path.read_bytes()), path).items()}
    stored = [bytes(tensor.data) for tensor in tensors.values()]
    stored += [array.data for _, array in encoding.arrays(pair.sidecar) if array.data is not None]
    assert len(stored) == 3 + 2 * foreign
    assert set(stored) == {bytes([value]) * length}, version
    return version


def killed_at(line: int, victim: Callable[[], object]) -> bool:
    """Run `victim` in a fork that dies before the given line of the product's code; False when it ended before."""
    child = os.fork()
    if child == 0:
        left = line

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename not in TRACED:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        victim()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the victim failed"
    return os.WIFSIGNALED(status)


def overwrite(version: str, backup: Path, folder: Path) -> None:
    """Save a version over what the backup holds."""
    write(version, restore(backup, folder))


def restore(backup: Path, folder: Path) -> Path:
    """The folder as it was."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(backup, folder)
    return folder / "x.safetensors"


def lines(folder: Path) -> int:
    """Kill a writer before every line; then a reader that completes what a dead writer left, likewise."""
    backup, work, half, kills = folder / "backup", folder / "work", folder / "half", 0
    path = work / "x.safetensors"
    for old, new in (("stateful", "stateful2"), ("stateful", "plain"), ("plain", "stateful")):
        shutil.rmtree(backup, ignore_errors=True)
        backup.mkdir()
        write(old, backup / "x.safetensors")
        found: list[str] = []
        while killed_at(len(found) + 1, partial(overwrite, new, backup, work)):
            found.append(version_of(path))
        assert found == [old] * found.count(old) + [new] * found.count(new)
        assert set(found) == {old, new}
        write(old, path)  # the next writer cleans up
        assert {file.suffix for file in work.iterdir()} == {".safetensors", ".json"}

        killed_at(found.index(new) + 1, partial(overwrite, new, backup, half))
        line = 1
        while killed_at(line, lambda: files.open_pair(restore(half, work))):
            assert version_of(path) == new
            line += 1
        kills += len(found) + line - 1
    return kills


def twice(folder: Path) -> int:
    """Kill a writer, then at once a second writer over what the first has left: nothing is lost then either."""
    draw, kills = random.Random(0), 0
    backup, work = folder / "backup", folder / "work"
    backup.mkdir()
    write("plain", backup / "x.safetensors")
    while kills < 160:
        path = restore(backup, work)
        first, second = draw.sample(["stateful", "stateful2", "tiny"], 2)
        kills += killed_at(draw.randint(60, 145), partial(write, first, path))
        kills += killed_at(draw.randint(1, 150), partial(write, second, path))
        assert version_of(path) in ("plain", first, second)
    return kills


def at_random(folder: Path) -> int:
    """Kill a process that saves one version after the other, at random moments, while this one reads all the time."""
    draw, path = random.Random(1), folder / "x.safetensors"
    write("plain", path)
    for kill in range(120):
        child = os.fork()
        if child == 0:
            for number in range(1000):
                write(list(VERSIONS)[(kill + number) % 4], path)
            os._exit(1)
        try:
            for _ in range(draw.randint(0, 20)):
                version_of(path, foreign=False)
            time.sleep(draw.uniform(0, 0.005))
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        version_of(path)
    return 120


if __name__ == "__main__":
    print({"lines": lines, "twice": twice, "random": at_random}[sys.argv[2]](Path(sys.argv[1])))
