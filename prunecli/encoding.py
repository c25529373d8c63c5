"""Sidecars as bytes and back: checked JSON with a checksum; large arrays are never in memory twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import msgspec
import msgspec.structs

from prunecli.sidecar import Array, Sidecar


def arrays(sidecar: Sidecar) -> Iterator[tuple[str, Array]]:
    """Every tensor inside a sidecar with its path there, which is its name in `X.state.safetensors`."""
    if sidecar.optimizer:
        for parameter, state in sidecar.optimizer.state.items():
            for key, array in state.items():
                yield f"optimizer/{parameter}/{key}", array
    if sidecar.training:
        for key, array in sidecar.training.rng.items():
            yield f"rng/{key}", array
        for kind, tensors in sidecar.training.method.tensors.items():
            for parameter, array in tensors.items():
                yield f"method/{kind}/{parameter}", array


def with_arrays(sidecar: Sidecar, replace: Callable[[str, Array], Array]) -> Sidecar:
    """A copy of a sidecar with each array replaced by `replace(path, array)`; everything else is shared."""
    optimizer, training = sidecar.optimizer, sidecar.training
    if optimizer:
        state = {
            parameter: {key: replace(f"optimizer/{parameter}/{key}", array) for key, array in state.items()}
            for parameter, state in optimizer.state.items()
        }
        optimizer = msgspec.structs.replace(optimizer, state=state)
    if training:
        rng = {key: replace(f"rng/{key}", array) for key, array in training.rng.items()}
        tensors = {
            kind: {name: replace(f"method/{kind}/{name}", array) for name, array in arrays.items()}
            for kind, arrays in training.method.tensors.items()
        }
        method = msgspec.structs.replace(training.method, tensors=tensors)
        training = msgspec.structs.replace(training, rng=rng, method=method)
    return msgspec.structs.replace(sidecar, optimizer=optimizer, training=training)


def decode(raw: bytes | memoryview) -> Sidecar:
    """Read a sidecar. Raises `ValueError` (`msgspec.DecodeError` with the path of what is wrong, for its contents)."""
    sidecar = msgspec.json.decode(raw, type=Sidecar)
    if sidecar.checksum is not None:
        last = _last_line(sidecar.checksum)
        if raw[-len(last) :] != last or hashlib.sha256(raw[: -len(last)]).hexdigest() != sidecar.checksum:
            raise ValueError("its checksum differs (after an edit on purpose, set it to null)")
        sidecar.checksum = None
    return sidecar


def encode(sidecar: Sidecar) -> Iterator[bytes]:
    """The bytes of a sidecar in pieces: keys in the schema's order, indented for people and `diff`, with a checksum.

    Arrays can be large, so each is encoded only when its turn comes, and the rest is indented without them.
    Raises `msgspec.ValidationError` for values that could not be read back, such as NaN.
    """
    digest = hashlib.sha256()
    for piece in _pieces(msgspec.structs.replace(sidecar, checksum="0" * 64)):
        digest.update(piece)
        yield piece
    yield _last_line(digest.hexdigest())


def _last_line(checksum: str) -> bytes:
    return f' "checksum": "{checksum}"\n}}\n'.encode()


def _pieces(sidecar: Sidecar) -> Iterator[bytes]:
    """The text of a sidecar up to its last line."""
    mark = b"where the bytes of an array go in"  # its base64 needs no padding
    contents: list[bytes] = []

    def marked(_: str, array: Array) -> Array:
        if array.data is None:
            return array
        contents.append(array.data)
        substitute = Array(dtype=array.dtype, shape=array.shape)
        substitute.data = mark
        return substitute

    without = with_arrays(sidecar, lambda _, array: Array(dtype=array.dtype, shape=array.shape))
    msgspec.json.decode(msgspec.json.encode(without), type=Sidecar)
    text = msgspec.json.format(msgspec.json.encode(with_arrays(sidecar, marked)), indent=1) + b"\n"
    pieces = text.removesuffix(_last_line("0" * 64)).split(msgspec.json.encode(mark))
    yield pieces[0]
    for data, piece in zip(contents, pieces[1:], strict=True):
        yield msgspec.json.encode(data)
        yield piece
