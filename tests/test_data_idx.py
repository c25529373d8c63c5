"""MNIST and its kin: IDX files, plain and gzipped, whole and damaged."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prunecli import data
from prunecli.data.idx import read_idx
from prunecli.errors import DamagedError, UsageError

REAL = Path(__file__).parents[1] / "../shared/data"
NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def idx(shape: tuple[int, ...], payload: bytes) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + payload


def write(folder: Path, compress: bool = False, count: int = 12) -> None:
    """Images of 28x28 whose pixel (0, 0) is their number, labels 0, 1, 2, ... modulo 10."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = b"".join(bytes([i]) + bytes(28 * 28 - 1) for i in range(count))
    for images, labels in NAMES.values():
        for name, content in (
            (images, idx((count, 28, 28), pixels)),
            (labels, idx((count,), bytes(i % 10 for i in range(count)))),
        ):
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(("name", "place"), [("mnist", ""), ("mnist", "raw"), ("mnist", "MNIST/raw"),
                                             ("fashion-mnist", "FashionMNIST/raw")])  # fmt: skip
def test_files_are_found_and_read(tmp_path: Path, name: str, place: str, compress: bool) -> None:
    write(tmp_path / place, compress)
    opened = data.open(name, str(tmp_path), {}, image_size=(1, 32, 32))
    ((x, y),) = opened.train.batches(100)
    assert x.shape == (12, 1, 32, 32)
    assert y.tolist() == [i % 10 for i in range(12)]
    mean, std = opened.info.mean[0], opened.info.std[0]
    assert (mean, std) == ((0.286, 0.353) if name == "fashion-mnist" else (0.1307, 0.3081))
    pixels = ((x * std + mean) * 255).round().int()
    assert pixels[:, 0, 2, 2].tolist() == list(range(12))  # padded by two pixels a side
    assert int(pixels.sum()) == sum(range(12))
    assert opened.info.shape == [1, 32, 32]


def test_own_size_without_a_wanted_one(tmp_path: Path) -> None:
    write(tmp_path)
    assert data.open("mnist", str(tmp_path), {}).info.shape == [1, 28, 28]
    assert next(data.open("mnist", str(tmp_path), {}, image_size=(3, 64, 64)).test.batches(2))[0].shape == (
        2,
        3,
        64,
        64,
    )


def test_border_0_resizes_where_the_default_frames_with_zeros(tmp_path: Path) -> None:
    write(tmp_path)
    first = tmp_path / "t10k-images-idx3-ubyte"
    first.write_bytes(first.read_bytes()[:16] + bytes([255]) * (12 * 28 * 28))
    sums = []
    for args in ({}, {"border": 1}, {"border": 2}, {"border": 0}):
        opened = data.open("mnist", str(tmp_path), args, image_size=(1, 32, 32))
        (x, _) = next(opened.test.batches(12))
        sums.append(int((x * 0.3081 + 0.1307).sum(dim=(1, 2, 3)).round()[0]))
    assert sums == [28 * 28, 32 * 32, 28 * 28, 32 * 32]  # ones, in a frame of zeros or all over
    with pytest.raises(UsageError, match="border=-1"):
        data.open("mnist", str(tmp_path), {"border": -1})
    with pytest.raises(UsageError, match="digits has no argument 'border'"):
        data.open("digits", None, {"border": 0})


def test_plain_file_goes_before_the_gzipped_one(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"not read")
    assert len(data.open("mnist", str(tmp_path), {}).train) == 12


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "no bytes": ("train-images-idx3-ubyte", lambda raw: b"", "not an IDX file"),
    "magic": ("train-images-idx3-ubyte", lambda raw: b"\x00\x00\x0d\x03" + raw[4:], "begins with 00000d03"),
    "labels for images": ("t10k-images-idx3-ubyte", lambda raw: idx((12,), bytes(12)), "begins with 00000801"),
    "header cut": ("train-images-idx3-ubyte", lambda raw: raw[:10], "not an IDX file"),
    "data cut": ("train-images-idx3-ubyte", lambda raw: raw[:-1], "promises 12 x 28 x 28 bytes, 9407 follow"),
    "data too long": ("t10k-labels-idx1-ubyte", lambda raw: raw + b"\x00", "promises 12 bytes, 13 follow"),
    "absurd size": ("train-labels-idx1-ubyte", lambda raw: idx((2**32 - 1,), bytes(12)), "promises 4294967295 bytes"),
    "no examples": ("train-labels-idx1-ubyte", lambda raw: idx((0,), b""), "promises 0 bytes"),
    "fewer labels": ("train-labels-idx1-ubyte", lambda raw: idx((11,), bytes(11)), "11 labels for 12 images"),
    "label out of range": (
        "t10k-labels-idx1-ubyte", lambda raw: raw[:-7] + b"\x0a" + raw[-6:], "label 10 at example 5"
    ),
}  # fmt: skip


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named(tmp_path: Path, damage: str, compress: bool) -> None:
    write(tmp_path, compress)
    name, change, message = DAMAGES[damage]
    path = tmp_path / (f"{name}.gz" if compress else name)
    raw = gzip.decompress(path.read_bytes()) if compress else path.read_bytes()
    path.write_bytes(gzip.compress(change(raw)) if compress else change(raw))
    with pytest.raises(DamagedError, match=message) as caught:
        data.open("mnist", str(tmp_path), {})
    assert str(path) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("change", [lambda raw: raw[:-4], lambda raw: raw[: len(raw) // 2], lambda raw: b"plain",
                                    lambda raw: raw[:20] + b"\xff" * 9 + raw[29:]])  # fmt: skip
def test_damaged_gzip_files_are_named(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    write(tmp_path, compress=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DamagedError) as caught:
        data.open("mnist", str(tmp_path), {})
    assert str(path) in caught.value.message


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"])
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DamagedError, match=name):
        data.open("mnist", str(tmp_path), {})


def test_read_idx_gives_the_tensor(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(idx((2, 3), bytes(range(6))))
    assert torch.equal(read_idx(tmp_path / "x", 2), torch.arange(6, dtype=torch.uint8).view(2, 3))


@pytest.mark.skipif(not (REAL / "MNIST/raw").is_dir(), reason="the real MNIST is not in ../shared/data")
def test_real_mnist() -> None:
    mnist = data.open("mnist", str(REAL), {}, image_size=(1, 32, 32), val=0.1)
    assert mnist.val is not None
    assert (len(mnist.train), len(mnist.val), len(mnist.test)) == (54000, 6000, 10000)
    x, y = next(mnist.test.batches(10000))
    assert y[:4].tolist() == [7, 2, 1, 0]
    inside = x[:, :, 2:30, 2:30]
    assert abs(float(inside.mean())) < 0.02
    assert abs(float(inside.std()) - 1) < 0.02
    assert next(data.open("mnist", str(REAL), {}).train.batches(4))[1].tolist() == [5, 0, 4, 1]
