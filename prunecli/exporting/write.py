"""One file, written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from prunecli.errors import PruneError
from prunecli.files import is_current, pending


def write(path: str | Path, content: bytes) -> None:
    """Replace `path` by `content` in one step, flushed to disk. Raises `PruneError` when the system refuses.

    What a killed process leaves beside it is overwritten by the next write.
    """
    path = Path(path)
    try:
        while not _written(path, content):
            pass
    except OSError as error:
        raise PruneError(
            f"{path}: cannot write it: {error.strerror or error}",
            f"create the folder first: mkdir -p {path.parent}"
            if not path.parent.is_dir()
            else f"check permissions and free space in {path.parent}; nothing there was changed",
        ) from error


def _written(path: Path, content: bytes) -> bool:
    """Whether the pending file was this process's to write: another one that writes `path` may have renamed it."""
    target = pending(path)
    with target.open("ab") as file:
        with contextlib.suppress(OSError):  # a file system without locks: one writer at a time is up to the user
            fcntl.flock(file, fcntl.LOCK_EX)
        if not is_current(file, target):
            return False
        try:
            file.truncate(0)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            target.replace(path)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    return True
