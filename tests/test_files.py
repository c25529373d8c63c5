"""The file pair without torch: reading headers, and what importing and locking promise."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from prunecli import files, tensorfile
from prunecli.errors import DamagedError, PruneError, UsageError
from prunecli.sidecar import Arch, Cost, Mask, Sidecar
from prunecli.tensorfile import RawTensor


def tensor(value: int, length: int = 4) -> RawTensor:
    return RawTensor("uint8", (length,), memoryview(bytes([value]) * length))


def write(path: Path, value: int, *, state: int | None = None, length: int = 4) -> str:
    sidecar = Sidecar(arch=Arch(name=str(value)), cost=Cost(input=[1]), masks={"w": Mask(shape=[4], bits=b"\x03")})
    if length != 4:
        sidecar.masks = {}
    weights, extra = {"w": tensor(value, length)}, {} if state is None else {"s": tensor(state)}
    return files.write_pair(path, sidecar, weights, extra)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


def test_neither_torch_nor_numpy_is_imported() -> None:
    code = "import prunecli.files, sys; print([m for m in ('torch', 'numpy', 'safetensors') if m in sys.modules])"
    root = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.strip() == "[]"


def test_headers_are_read(path: Path) -> None:
    sha256 = write(path, 7)
    sidecar, header = files.read(str(path))
    assert header == {"w": ("uint8", (4,))}
    assert sidecar.weights is not None
    assert (sidecar.weights.sha256, sidecar.weights.size) == (sha256, path.stat().st_size)
    assert sidecar.weights.file == "x.safetensors"
    assert sidecar.masks["w"].kept == 2


def test_header_reading_does_not_need_the_state_file(path: Path) -> None:
    write(path, 7, state=1)
    path.with_name("x.state.safetensors").unlink()
    assert files.read(path)[0].arch.name == "7"
    with pytest.raises(DamagedError, match=r"x\.state\.safetensors: no such file"):
        files.open_pair(path)


def test_weights_are_the_last_file_to_change(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (order.append(target.name), replace(self, target))[1])
    write(path, 1, state=1)
    assert order == ["x.json", "x.state.safetensors", "x.safetensors"]


def test_files_have_usual_permissions(path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(path, 1, state=1)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o640}


@pytest.mark.parametrize("name", ["mit leer.safetensors", "ünïcode.safetensors", os.fsdecode(b"\xff.safetensors")])
def test_any_file_name_works(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, 3)
    assert files.read(tmp_path / name)[0].arch.name == "3"


def test_relative_paths_work(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    write(Path("x.safetensors"), 3)
    assert files.read("x.safetensors")[0].arch.name == "3"


def test_too_long_names_are_errors_of_ours(tmp_path: Path) -> None:
    with pytest.raises(PruneError):
        write(tmp_path / ("n" * 240 + ".safetensors"), 3)
    with pytest.raises(PruneError):
        files.read(tmp_path / ("n" * 300 + ".safetensors"))


def test_a_second_writer_waits_for_the_first(path: Path) -> None:
    write(path, 1)
    with files.pending(path).open("wb") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second = threading.Thread(target=write, args=(path, 2))
        second.start()
        second.join(0.2)
        assert second.is_alive()
        assert files.read(path)[0].arch.name == "1", "readers do not wait"
    second.join(10)
    assert files.read(path)[0].arch.name == "2"
    assert sorted(file.name for file in path.parent.iterdir()) == ["x.json", "x.safetensors"]


def test_readers_and_writers_at_once_see_whole_checkpoints(path: Path) -> None:
    write(path, 0)
    failures: list[BaseException] = []
    stop = threading.Event()

    def repeat(number: int) -> None:
        try:
            while not stop.is_set():
                for value in range(number, 100, 7):
                    write(path, value, state=value if value % 2 else None, length=4 + 100 * (value % 3))
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=repeat, args=(number,)) for number in range(2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(300):
            pair = files.open_pair(path)
            value = int(pair.sidecar.arch.name)
            assert set(pair.weights["w"].data) == {value}
            assert pair.state is not None
            assert all(set(tensor.data) == {value} for tensor in pair.state.values())
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert not failures


def test_leftovers_of_dead_writers_go_with_the_next_write(path: Path) -> None:
    for name in ("x.safetensors.pending", "x.json.pending", "x.state.safetensors.pending"):
        (path.parent / name).write_bytes(b"left by a dead writer" * 100)
    write(path, 5)
    assert files.read(path)[0].arch.name == "5"
    assert sorted(file.name for file in path.parent.iterdir()) == ["x.json", "x.safetensors"]


def test_a_writer_settles_what_a_dead_writer_began(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, 1)
    write(path.with_name("y.safetensors"), 2, state=2)
    path.with_name("y.json").replace(path.with_suffix(".json"))  # a writer of version 2 died here
    path.with_name("y.safetensors").replace(files.pending(path))
    path.with_name("y.state.safetensors").replace(path.with_name("x.state.safetensors.pending"))

    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensorfile, "write", full)
    with pytest.raises(PruneError):
        write(path, 3)
    assert files.open_pair(path).sidecar.arch.name == "2"
    assert path.with_name("x.state.safetensors").exists()


@pytest.mark.parametrize("content", ['{"name": "my-package"}', "[1, 2]", "not JSON at all"])
def test_a_file_that_is_no_sidecar_is_not_overwritten(path: Path, content: str) -> None:
    sidecar = path.with_suffix(".json")
    sidecar.write_text(content)
    for refused in (lambda: write(path, 1), lambda: files.check_folder(path)):
        with pytest.raises(UsageError, match=r"would be overwritten"):
            refused()
    assert sidecar.read_text() == content
    assert [entry.name for entry in path.parent.iterdir()] == [sidecar.name]


def test_damaged_and_sorted_sidecars_may_be_overwritten(path: Path) -> None:
    sidecar = path.with_suffix(".json")
    write(path, 1)
    whole = sidecar.read_bytes()
    for content in (b"", whole[:100], json.dumps(json.loads(whole), sort_keys=True).encode()):
        sidecar.write_bytes(content)
        write(path, 1)
        assert sidecar.read_bytes() == whole
