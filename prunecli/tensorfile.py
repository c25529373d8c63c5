"""Safetensors files without torch: a reader that trusts nothing in them, and a writer that hashes as it writes.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes little-endian header length, a JSON header, the
tensors' bytes one after the other without gaps. The writer's order (widest dtype first, then by name) and padding are
those of the `safetensors` package, so both write the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from prunecli.errors import DamagedError
from prunecli.sidecar import ITEM_BYTES, Count, DType, Shape, elements

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors package
# In the order of the file: dtypes as safetensors ranks them, widest first.
CODES: dict[DType, str] = {
    "int64": "I64", "float64": "F64", "float32": "F32", "int32": "I32", "bfloat16": "BF16", "float16": "F16",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
DTYPES = {code: dtype for dtype, code in CODES.items()}
RANK = {dtype: rank for rank, dtype in enumerate(CODES)}


@dataclass(frozen=True)
class RawTensor:
    """A tensor as bytes: `data` is C-contiguous, little-endian, and may be a view of a mapped file."""

    dtype: DType
    shape: tuple[int, ...]
    data: memoryview


class _Entry(msgspec.Struct):
    dtype: str
    shape: Shape
    data_offsets: tuple[Count, Count]


def parse(buffer: memoryview, path: Path) -> dict[str, RawTensor]:
    """The tensors of a safetensors file, as views into `buffer`. Raises `DamagedError` for anything out of order."""
    try:
        entries, start = _header(buffer)
        return _tensors(buffer[start:], entries)
    except (ValueError, RecursionError) as error:
        raise DamagedError(
            f"{path}: not a whole safetensors file: {error}", "restore the file, or rerun the step that wrote it"
        ) from error


def _header(buffer: memoryview) -> tuple[dict[str, _Entry], int]:
    if len(buffer) < 8:
        raise ValueError(f"{len(buffer)} bytes are too few for a header")
    length = int.from_bytes(buffer[:8], "little")
    if length > min(MAX_HEADER, len(buffer) - 8):
        raise ValueError(f"a header of {length} bytes in a file of {len(buffer)}")
    fields = msgspec.json.decode(buffer[8 : 8 + length], type=dict[str, Any])
    fields.pop("__metadata__", None)
    return msgspec.convert(fields, dict[str, _Entry]), 8 + length


def _tensors(body: memoryview, entries: dict[str, _Entry]) -> dict[str, RawTensor]:
    tensors: dict[str, RawTensor] = {}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        if entry.dtype not in DTYPES:
            raise ValueError(f"tensor {name!r} has dtype {entry.dtype}, known are {', '.join(DTYPES)}")
        dtype, (start, stop) = DTYPES[entry.dtype], entry.data_offsets
        if start != end or stop - start != elements(entry.shape) * ITEM_BYTES[dtype] or stop > len(body):
            raise ValueError(f"tensor {name!r} of shape {entry.shape} lies at bytes {start} to {stop} of {len(body)}")
        tensors[name] = RawTensor(dtype, tuple(entry.shape), body[start:stop])
        end = stop
    if end != len(body):
        raise ValueError(f"{len(body) - end} bytes belong to no tensor")
    return tensors


def write(file: BinaryIO, tensors: Mapping[str, RawTensor]) -> str:
    """Write a safetensors file; returns the SHA-256 of its bytes, which depend on the tensors alone."""
    ordered = sorted(tensors.items(), key=lambda item: (RANK[item[1].dtype], item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.data.nbytes
        header[name] = _Entry(CODES[tensor.dtype], list(tensor.shape), (start, end))
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    chunks: list[bytes | memoryview] = [len(text).to_bytes(8, "little") + text]
    for chunk in chunks + [tensor.data for _, tensor in ordered]:
        file.write(chunk)
        digest.update(chunk)
    return digest.hexdigest()
