"""The file pair on disk: X.safetensors, X.json and, for large optimizer state, X.state.safetensors; always complete.

A writer puts every file beside its target under a pending name, flushes it, then renames: sidecar first, weights last.
The pending weights file exists during the whole write and is locked (`flock`), so it is also the writers' lock. Whoever
dies after the first rename has left everything that is needed: the next reader or writer finishes the renames, and in a
folder that cannot be written a reader takes the contents from the pending files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from prunecli import encoding, tensorfile
from prunecli.consistency import check
from prunecli.errors import DamagedError, PruneError, UsageError, nearest
from prunecli.sidecar import FORMAT, FileRef, Sidecar
from prunecli.tensorfile import RawTensor

WEIGHTS, STATE = ".safetensors", ".state.safetensors"
MAX_SIDECAR = 2**30  # bytes
RESTORE = "restore the file from a backup, or rerun the step that wrote it"


@dataclass(frozen=True)
class Paths:
    """The files of one checkpoint."""

    weights: Path
    sidecar: Path
    state: Path


@dataclass(frozen=True)
class Pair:
    """A verified checkpoint; its tensors are views of privately mapped files. `state` is None if it was not opened."""

    paths: Paths
    sidecar: Sidecar
    weights: dict[str, RawTensor]
    state: dict[str, RawTensor] | None
    sha256: str


def paths(path: str | Path) -> Paths:
    """The files of the checkpoint `path`. Raises `UsageError` for a name that is not X.safetensors."""
    name = str(path)
    stem = name.removesuffix(".json").removesuffix(WEIGHTS).removesuffix(".state")
    if not name.endswith(WEIGHTS) or name.endswith(STATE) or "\0" in name or stem.endswith("/") or not stem:
        hint = f"a checkpoint is named by its weights file, such as {Path(stem or 'model').name or 'model'}{WEIGHTS}"
        raise UsageError(f"{name!r} does not name a checkpoint", hint)
    return Paths(Path(name), Path(stem + ".json"), Path(stem + STATE))


def pending(path: Path) -> Path:
    """Where the new contents of `path` are until the rename."""
    return path.with_name(path.name + ".pending")


def read(path: str | Path) -> tuple[Sidecar, dict[str, tuple[str, tuple[int, ...]]]]:
    """The sidecar of a checkpoint, and the dtype and shape of every tensor; both files verified as by `open_pair`."""
    pair = open_pair(path, state=False)
    return pair.sidecar, {name: (tensor.dtype, tensor.shape) for name, tensor in pair.weights.items()}


def open_pair(path: str | Path, *, state: bool = True) -> Pair:
    """Map and verify a checkpoint, finishing an interrupted write of it where one is found.

    Raises `DamagedError` when a file is missing, damaged or belongs to another checkpoint, `PruneError` when the system
    refuses to read it.
    """
    where = paths(path)
    with _translated(where.weights, "read"):
        while True:
            before = _versions(where)
            try:
                return _open(where, state)
            except (DamagedError, FileNotFoundError):
                if _versions(where) == before:  # else a writer was at work between two of our looks
                    raise


def read_tensors(path: Path) -> dict[str, RawTensor]:
    """The tensors of a safetensors file that belongs to no checkpoint. Raises as `open_pair` does."""
    with _translated(path, "read"):
        contents = _map(paths(path).weights, sys.maxsize)
        if contents is None:
            raise _missing(paths(path))
        return tensorfile.parse(contents, path)


def _open(where: Paths, state: bool) -> Pair:
    sidecar = _read_sidecar(where)
    if sidecar.weights is None:
        raise DamagedError(f"{where.sidecar}: it does not say which weights it belongs to", RESTORE)
    weights = _find(where.weights, sidecar.weights, where)
    tensors = tensorfile.parse(weights, where.weights)
    state_tensors: dict[str, RawTensor] | None = None
    if state:
        found = _find(where.state, sidecar.state, where) if sidecar.state else None
        state_tensors = tensorfile.parse(found, where.state) if found is not None else {}
    check(sidecar, tensors, state_tensors, where.sidecar)
    return Pair(where, sidecar, tensors, state_tensors, sidecar.weights.sha256)


def _read_sidecar(where: Paths) -> Sidecar:
    raw = _map(where.sidecar, MAX_SIDECAR)
    if raw is None:
        raise _missing(where)
    try:
        return encoding.decode(raw)
    except (ValueError, RecursionError) as error:
        version = _version(raw)
        if version is not None and version != FORMAT:
            message = f"{where.sidecar}: format {version!r}, this prunecli reads format {FORMAT}"
            raise DamagedError(message, "use the version of prunecli that wrote it") from error
        raise DamagedError(f"{where.sidecar}: not a valid sidecar: {error}", RESTORE) from error


def _version(raw: bytes | memoryview) -> object:
    class Versioned(msgspec.Struct):
        format: object = None

    try:
        return msgspec.json.decode(raw, type=Versioned).format
    except (ValueError, RecursionError):
        return None


def _find(path: Path, ref: FileRef, where: Paths) -> memoryview:
    """The contents that `ref` describes: of `path` or, when a writer died before the rename, of its pending file."""
    if (found := _matching(path, ref)) is not None:
        return found
    if (found := _matching(pending(path), ref)) is None:
        raise _mismatch(path, ref, where)
    with contextlib.suppress(OSError), pending(where.weights).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while the writer lives and will rename by itself
        if is_current(file, pending(where.weights)):
            _settle(where)
    return found


def _matching(path: Path, ref: FileRef) -> memoryview | None:
    contents = _map(path, ref.size)
    if contents is None or len(contents) != ref.size or hashlib.sha256(contents).hexdigest() != ref.sha256:
        return None
    return contents


def _map(path: Path, most: int) -> memoryview | None:
    """The contents of a file, mapped privately: writing to them changes no file.

    None when there is no such file, or when it has more than `most` bytes.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # not to hang on a pipe
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise DamagedError(f"{path}: not a regular file", "name the weights file of a checkpoint")
        if status.st_size > most:
            return None
        return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_COPY) if status.st_size else b"")
    finally:
        os.close(fd)


def _versions(where: Paths) -> list[tuple[int, int, int] | None]:
    """What tells whether a file was replaced between two looks at it."""
    versions: list[tuple[int, int, int] | None] = []
    for path in (where.sidecar, where.weights, where.state):
        try:
            status = path.stat()
            versions.append((status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError:
            versions.append(None)
    return versions


def _missing(where: Paths) -> DamagedError:
    if where.sidecar.is_file():
        return DamagedError(f"{where.sidecar}: more than {MAX_SIDECAR} bytes, too many for a sidecar", RESTORE)
    if where.weights.is_file():
        hint = f"restore it; the weights alone can start a run: prunecli train --init {where.weights}"
        return DamagedError(f"{where.sidecar}: no such file, the sidecar of {where.weights.name}", hint)
    folder = where.weights.parent
    names = [file.name for file in folder.glob("*" + WEIGHTS)] if folder.is_dir() else []
    hint = nearest(where.weights.name, names) if folder.is_dir() else f"the folder {folder} does not exist"
    return DamagedError(f"{where.weights}: no such file", hint)


def _mismatch(path: Path, ref: FileRef, where: Paths) -> DamagedError:
    if not path.exists():
        return DamagedError(f"{path}: no such file, but {where.sidecar.name} belongs to it", RESTORE)
    older = min(path, where.sidecar, key=lambda file: file.stat().st_mtime_ns)
    size = path.stat().st_size
    what = f"it has {size} bytes instead of {ref.size}" if size != ref.size else "its SHA-256 differs"
    return DamagedError(
        f"{path} is not the file that {where.sidecar.name} describes: {what}",
        f"{older.name} is the older of the two and may be stale: restore both from one backup, or rerun the step",
    )


def exists(path: str | Path) -> bool:
    """Whether there is a checkpoint at `path`, whole or one rename short of it."""
    where = paths(path)
    return where.sidecar.exists() and (where.weights.exists() or pending(where.weights).exists())


def check_folder(path: str | Path) -> None:
    """Raise `PruneError` unless the folder of `path` is there and can be written: better known before the work.

    `UsageError` when the sidecar's name is that of a JSON file which is no sidecar, such as `package.json`.
    """
    where = paths(path)
    folder = where.weights.parent
    if not folder.is_dir():
        raise PruneError(f"{path}: there is no folder {folder}", f"make it first: mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PruneError(
            f"{path}: the folder {folder} cannot be written", "choose another folder, or change its permissions"
        )
    with _translated(where.weights, "write"):
        _refuse_foreign(where.sidecar)


def _refuse_foreign(sidecar: Path) -> None:
    """Raise `UsageError` rather than let a JSON file of someone else's be replaced. A damaged sidecar may be."""
    with contextlib.suppress(FileNotFoundError), sidecar.open("rb") as file:
        if (beginning := file.read(64)) and b'"format"' not in beginning and _version(beginning + file.read()) is None:
            raise UsageError(
                f"{sidecar} is there and is no sidecar: it would be overwritten", "choose another --output, or move it"
            )


def remove(path: str | Path) -> None:
    """Remove the checkpoint `path`, if there is one: sidecar first, since without it there is none (see `exists`)."""
    where = paths(path)
    with _translated(where.weights, "remove"):
        for target in (where.sidecar, where.state, where.weights):
            target.unlink(missing_ok=True)
            pending(target).unlink(missing_ok=True)


def write_pair(
    path: str | Path, sidecar: Sidecar, weights: Mapping[str, RawTensor], state: Mapping[str, RawTensor]
) -> str:
    """Replace the checkpoint `path` as a whole; returns the SHA-256 of its weights file.

    `sidecar` is written with references to the new files. Raises `PruneError` when the system refuses to write: the
    old files are then untouched.
    """
    where = paths(path)
    with _translated(where.weights, "write"):
        for target in (where.weights, where.sidecar, where.state):
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        _refuse_foreign(where.sidecar)
        with _claimed(where) as file:
            renaming = False
            try:
                ref = _write_tensors(file, weights, where.weights)
                state_ref = None
                if state:
                    with pending(where.state).open("wb") as state_file:
                        state_ref = _write_tensors(state_file, state, where.state)
                with pending(where.sidecar).open("wb") as sidecar_file:
                    sidecar_file.writelines(
                        encoding.encode(msgspec.structs.replace(sidecar, weights=ref, state=state_ref))
                    )
                    _flush(sidecar_file)
                renaming = True
                pending(where.sidecar).replace(where.sidecar)
                _flush_folder(where)
                if state:
                    _rename(where.state)
                else:
                    _remove(where.state, pending(where.state))
                _rename(where.weights)  # last: from here on the next writer may begin
                _flush_folder(where)
            except BaseException:
                if not renaming or pending(where.sidecar).exists():  # else the new pair is the valid one
                    _remove(*map(pending, (where.sidecar, where.state, where.weights)))
                raise
    return ref.sha256


@contextlib.contextmanager
def _claimed(where: Paths) -> Iterator[BinaryIO]:
    """The pending weights file, empty and locked, after whatever a dead writer left half renamed is settled."""
    path = pending(where.weights)
    while True:
        with path.open("ab") as file:
            with contextlib.suppress(OSError):  # a file system without locks: one writer at a time is up to the user
                fcntl.flock(file, fcntl.LOCK_EX)
            if is_current(file, path) and os.fstat(file.fileno()).st_size:
                _settle(where)
            if is_current(file, path):
                file.truncate(0)
                yield file
                return


def is_current(file: BinaryIO, path: Path) -> bool:
    """Whether `path` is still the file that was opened, not renamed or replaced meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _settle(where: Paths) -> None:
    """Finish the renames of a writer that died after it had renamed the sidecar. The pending weights are locked."""
    try:
        sidecar = _read_sidecar(where)
    except DamagedError:
        return
    for path, ref in ((where.state, sidecar.state), (where.weights, sidecar.weights)):
        if ref and _matching(path, ref) is None and _matching(pending(path), ref) is not None:
            pending(path).replace(path)


def _write_tensors(file: BinaryIO, tensors: Mapping[str, RawTensor], target: Path) -> FileRef:
    sha256 = tensorfile.write(file, tensors)
    _flush(file)
    name = os.fsencode(target.name).decode("utf-8", "replace")
    return FileRef(file=name, size=os.fstat(file.fileno()).st_size, sha256=sha256)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(where: Paths) -> None:
    fd = os.open(where.weights.parent, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _rename(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # on a file system without locks a reader may have been faster
        pending(path).replace(path)


def _remove(*files: Path) -> None:
    for path in files:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _translated(path: Path, verb: str) -> Iterator[None]:
    """Errors of the system as `PruneError`s that name the checkpoint."""
    try:
        yield
    except msgspec.ValidationError as error:
        raise PruneError(f"{path}: cannot {verb} it: {error}", "a value is not finite or out of range") from error
    except OSError as error:
        hints = {
            errno.ENOENT: f"create the folder first: mkdir -p {path.parent}",
            errno.ENOMEM: "it is larger than the memory of this machine",
            errno.ENOSPC: "free some space, or choose another folder; the files of before are untouched",
            errno.EDQUOT: "free some space, or choose another folder; the files of before are untouched",
        }
        hint = hints.get(error.errno or 0, f"check the permissions of {path} and of its folder")
        raise PruneError(f"{path}: cannot {verb} it: {error.strerror or error}", hint) from error
