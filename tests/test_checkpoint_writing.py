"""Checkpoints that cannot be written, and writers that died: the old pair or the new one is there, whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoint import contents, refused, write

from prunecli import files, tensorfile
from prunecli.checkpoint import load, save
from prunecli.errors import DamagedError, PruneError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    write(path)
    return path


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1000, 10**5])
def test_a_write_that_fails_touches_nothing(path: Path, size: int) -> None:
    checkpoint, before = load(path), contents(path.parent)
    checkpoint.weights["big"] = torch.ones(10**5)
    with largest_file(size), pytest.raises(PruneError, match=r"x\.safetensors: cannot write") as caught:
        save(checkpoint, path)
    assert caught.value.exit_code == 1
    assert contents(path.parent) == before


@pytest.mark.parametrize("step", ["write", "flush", "flush_state", "flush_sidecar", "replace"])
def test_a_full_disk_touches_nothing(path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, before = load(path), contents(path.parent)
    calls = {"write": 0, "flush": 1, "flush_state": 2, "flush_sidecar": 3, "replace": 1}[step]

    def full(*_: object) -> Any:
        nonlocal calls
        calls -= 1
        if calls <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "write":
        monkeypatch.setattr(tensorfile, "write", full)
    elif step == "replace":
        monkeypatch.setattr(Path, "replace", full)
    else:
        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PruneError, match="No space left") as caught:
        save(checkpoint, path, inline_limit=0)
    assert "space" in caught.value.hint
    monkeypatch.undo()
    assert contents(path.parent) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount file systems here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    path = small_disk / "x.safetensors"
    write(path)
    (small_disk / "filler").write_bytes(bytes(600 * 1024))
    before = contents(small_disk)
    for _ in range(3):
        with pytest.raises(PruneError, match="No space left"):
            write(path)  # not enough room for two at once
        assert contents(small_disk) == before
    load(path)


def half_renamed(path: Path) -> tuple[bytes, bytes]:
    """Leave `path` as a writer that died after its first rename; the new weights and the old ones."""
    old = path.read_bytes()
    write(path.with_name("y.safetensors"))
    path.with_name("y.json").replace(path.with_suffix(".json"))
    path.with_name("y.safetensors").replace(files.pending(path))
    return files.pending(path).read_bytes(), old


def test_a_reader_finishes_the_rename(path: Path) -> None:
    new, _ = half_renamed(path)
    assert load(path).sha256 == hashlib.sha256(new).hexdigest()
    assert path.read_bytes() == new
    assert not files.pending(path).exists()


def test_a_reader_loads_from_the_pending_file_in_a_read_only_folder(small_disk: Path) -> None:
    path = small_disk / "x.safetensors"
    write(path)
    new, old = half_renamed(path)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    checkpoint = load(path)
    assert checkpoint.sha256 == hashlib.sha256(new).hexdigest()
    assert path.read_bytes() == old
    with pytest.raises(PruneError, match="cannot write") as caught:
        save(checkpoint, path)
    assert caught.value.hint
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


def test_a_stranger_in_place_of_the_pending_file_is_left_alone(path: Path) -> None:
    _, old = half_renamed(path)
    files.pending(path).write_bytes(b"something else")
    refused(path, DamagedError)
    assert path.read_bytes() == old


def test_missing_folder(path: Path) -> None:
    with pytest.raises(PruneError, match="nowhere") as caught:
        save(load(path), path.parent / "nowhere" / "x.safetensors")
    assert "mkdir" in caught.value.hint


def test_interruption_while_writing_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, before = load(path), contents(path.parent)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(checkpoint, path)
    assert contents(path.parent) == before
