"""CIFAR: binary files of the real sizes, damaged ones, the image-folder layout, and pickles, which are never read."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prunecli import data
from prunecli.data.cifar import LAYOUTS, read_records
from prunecli.errors import DamagedError

RECORD = 1 + 3072


def write_cifar10(folder: Path, records: int) -> None:
    """All records are label 0 and black but the first of file k: label k, red is k, and the last pixel 9."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate([f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"], start=1):
        first = bytearray(RECORD)
        first[0] = number
        first[1:1025] = bytes([number]) * 1024
        first[3072] = 9
        with (folder / name).open("wb") as stream:
            stream.write(first)
            stream.truncate(records * RECORD)


@pytest.mark.parametrize("place", ["", "cifar-10-batches-bin"])
def test_binary_files(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(LAYOUTS["cifar10"], records=20, test_records=20)
    monkeypatch.setitem(LAYOUTS, "cifar10", small)
    write_cifar10(tmp_path / place, 20)
    (tmp_path / place / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    cifar = data.open("cifar10", str(tmp_path), {}, image_size=(3, 32, 32))
    assert (len(cifar.train), len(cifar.test)) == (100, 20)
    assert cifar.info.class_names == list("abcdefghij")
    x, y = next(cifar.train.batches(100))
    assert y.nonzero().flatten().tolist() == [0, 20, 40, 60, 80]
    assert y[::20].tolist() == [1, 2, 3, 4, 5]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (cifar.info.mean, cifar.info.std))
    pixels = ((x * std + mean) * 255).round().int()
    assert (pixels[::20, 0] == torch.arange(1, 6).view(5, 1, 1)).all()
    assert (pixels[::20, 1:].flatten(1).sum(1) == 9).all()
    assert (pixels[::20, 2, 31, 31] == 9).all()


def test_published_sizes_are_demanded(tmp_path: Path) -> None:
    write_cifar10(tmp_path, 10_000)
    cifar = data.open("cifar10", str(tmp_path), {})
    assert (len(cifar.train), len(cifar.test), cifar.info.shape) == (50_000, 10_000, [3, 32, 32])
    with (tmp_path / "data_batch_3.bin").open("r+b") as stream:
        stream.truncate(9_999 * RECORD)
    with pytest.raises(DamagedError, match=r"data_batch_3\.bin: 30726927 bytes, not 30730000"):
        data.open("cifar10", str(tmp_path), {})


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(bytes([19, 99]) + bytes(3072) + bytes([3, 7]) + bytes(3072))
    assert read_records(path, LAYOUTS["cifar100"], 2).labels.tolist() == [99, 7]


def test_label_out_of_range_is_named(tmp_path: Path) -> None:
    path = tmp_path / "test_batch.bin"
    path.write_bytes(bytes(RECORD) + bytes([10]) + bytes(3072))
    with pytest.raises(DamagedError, match=r"test_batch\.bin: label 10 in record 1"):
        read_records(path, LAYOUTS["cifar10"], 2)


def test_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYOUTS, "cifar10", dataclasses.replace(LAYOUTS["cifar10"], records=2, test_records=2))
    write_cifar10(tmp_path, 2)
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(DamagedError, match=r"data_batch_4\.bin: cannot be read"):
        data.open("cifar10", str(tmp_path), {})


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('a pickle was read')",))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("cifar10", "data_batch_1"),
        ("cifar100", "cifar-100-python/train"),
        ("cifar100", "train"),
    ],
)
def test_pickles_are_refused_unread(tmp_path: Path, name: str, file: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DamagedError, match="never read") as caught:
        data.open(name, str(tmp_path), {})
    assert "binary version" in caught.value.hint


def test_folder_without_any_of_it(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"no file data_batch_1\.bin"):
        data.open("cifar10", str(tmp_path), {})


def test_image_folder_layout(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in range(10):
            place = tmp_path / split / f"class{label}"
            place.mkdir(parents=True)
            Image.fromarray(np.full((32, 32, 3), label, np.uint8)).save(place / "0.png")
    cifar = data.open("cifar10", str(tmp_path), {"workers": 1})
    assert cifar.info.mean == [0.4914, 0.4822, 0.4465]
    assert next(cifar.test.batches(10))[1].tolist() == list(range(10))
    with pytest.raises(DamagedError, match="10 class folders, but cifar100 has 100"):
        data.open("cifar100", str(tmp_path), {})
