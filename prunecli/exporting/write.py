"""One file, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from prunecli.errors import PruneError


def write(path: str | Path, content: bytes) -> None:
    """Replace `path` by `content` in one step, flushed to disk. Raises `PruneError` when the system refuses."""
    path = Path(path)
    pending = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            pending = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        pending.chmod(0o666 & ~_umask())  # temporary files are made private
        pending.replace(path)
    except OSError as error:
        raise PruneError(
            f"{path}: cannot write it: {error.strerror or error}",
            f"create the folder first: mkdir -p {path.parent}"
            if not path.parent.is_dir()
            else f"check permissions and free space in {path.parent}; nothing there was changed",
        ) from error
    finally:
        if pending:
            pending.unlink(missing_ok=True)


def _umask() -> int:
    os.umask(mask := os.umask(0o077))
    return mask
