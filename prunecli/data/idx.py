"""Reading IDX files, plain or gzipped: the format of MNIST (http://yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunecli.errors import DamagedError

UNSIGNED_BYTE = 0x08


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The uint8 tensor of `dimensions` dimensions in an IDX file.

    The header is two zero bytes, the type, the number of dimensions, and each dimension as a big-endian 32-bit number.
    Raises `DamagedError` for a file that cannot be read, is of another type, or is not as long as its header says.
    """
    raw = _content(path)
    expected = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    if raw[:4] != expected or len(raw) < 4 + 4 * dimensions:
        raise DamagedError(
            f"{path}: not an IDX file of {dimensions} dimensions (begins with {raw[:4].hex()}, not {expected.hex()})",
            "download the file again",
        )
    shape = struct.unpack_from(f">{dimensions}I", raw, 4)
    data = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dimensions)
    if data.size != math.prod(shape) or not data.size:
        raise DamagedError(
            f"{path}: its header promises {' x '.join(map(str, shape))} bytes, {data.size} follow",
            "download the file again",
        )
    return torch.from_numpy(data.reshape(shape).copy())


def _content(path: Path) -> bytes:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                return stream.read()
        return path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise DamagedError(f"{path}: cannot be read ({error})", "download the file again") from error
