"""Bytes of a checkpoint's files."""

from __future__ import annotations

import zlib
from pathlib import Path

BLOCK = 2**20


def disk_sizes(path: str | Path, *, compressed: bool = True) -> tuple[int, int | None]:
    """Bytes of a file, and bytes after zlib at level 6 (None when not wanted), read once in blocks.

    Compression is what a masked network's zeros bring in storage and transfer, without any sparse format.
    """
    path = Path(path)
    if not compressed:
        return path.stat().st_size, None
    compressor = zlib.compressobj(6)
    size = packed = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            size += len(block)
            packed += len(compressor.compress(block))
    return size, packed + len(compressor.flush())
