"""CIFAR-10 and CIFAR-100: 60,000 colour images of 32x32, from the binary version's files or from an image folder.

Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html. The Python version consists of pickles, which can
run code when they are read: it is refused.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prunecli.data import folder as image_folder
from prunecli.data.base import Augment, InMemory, Loaded, Request
from prunecli.data.locate import first_with, folder_of
from prunecli.errors import DamagedError

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """A binary version: a record is `label_bytes` labels, of which the last counts, and pixels by channel."""

    classes: int
    label_bytes: int
    train_files: tuple[str, ...]
    test_file: str
    records: int  # in a file of the training set
    test_records: int
    subfolder: str
    python_names: tuple[str, ...]  # what shows that the Python version lies there instead
    names_file: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


LAYOUTS = {
    "cifar10": Layout(
        classes=10,
        label_bytes=1,
        train_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test_file="test_batch.bin",
        records=10_000,
        test_records=10_000,
        subfolder="cifar-10-batches-bin",
        python_names=("data_batch_1", "cifar-10-batches-py/data_batch_1"),
        names_file="batches.meta.txt",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": Layout(
        classes=100,
        label_bytes=2,
        train_files=("train.bin",),
        test_file="test.bin",
        records=50_000,
        test_records=10_000,
        subfolder="cifar-100-binary",
        python_names=("cifar-100-python/train", "train"),
        names_file="fine_label_names.txt",
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}


def load(request: Request) -> Loaded:
    """The binary files in the folder or its usual subfolder; else the folder's `train` and `test` of class folders."""
    layout = LAYOUTS[request.name]
    folder = folder_of(request)
    place = first_with(folder, (layout.subfolder,), layout.train_files)
    if place is not None:
        train = [read_records(place / name, layout, layout.records) for name in layout.train_files]
        return Loaded(
            train=InMemory(torch.cat([part.images for part in train]), torch.cat([part.labels for part in train])),
            test=read_records(place / layout.test_file, layout, layout.test_records),
            classes=layout.classes,
            class_names=_class_names(place, layout),
            mean=layout.mean,
            std=layout.std,
            augment=Augment(pad=4, flip=True),
        )
    if image_folder.has_splits(folder):
        return _from_image_folder(request, layout)
    if first_with(folder, (), layout.python_names):
        raise DamagedError(
            f"{folder}: the Python version of {request.name}, whose pickles are never read",
            "download the binary version (cifar-10-binary.tar.gz, cifar-100-binary.tar.gz) and unpack it there",
        )
    raise DamagedError(
        f"{folder}: no file {layout.train_files[0]}, and no train/ and test/ folders",
        f"name the folder that holds {layout.subfolder}/, unpacked from the binary version, or an image folder",
    )


def read_records(path: Path, layout: Layout, records: int) -> InMemory:
    """The `records` images, uint8 [N, 3, 32, 32], and labels of one binary file. Raises `DamagedError`."""
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read ({error.strerror})", "unpack the binary version again") from error
    width = layout.label_bytes + PIXELS
    if raw.size != records * width:
        raise DamagedError(
            f"{path}: {raw.size} bytes, not {records * width} ({records} records of {width})", "download the file again"
        )
    table = raw.reshape(records, width)
    labels = torch.from_numpy(table[:, layout.label_bytes - 1].astype(np.int64))
    if int(labels.max()) >= layout.classes:
        raise DamagedError(
            f"{path}: label {int(labels.max())} in record {int(labels.argmax())}, of {layout.classes} classes",
            "download the file again",
        )
    images = torch.from_numpy(np.ascontiguousarray(table[:, layout.label_bytes :])).view(-1, 3, 32, 32)
    return InMemory(images, labels)


def _class_names(place: Path, layout: Layout) -> list[str] | None:
    try:
        names = (place / layout.names_file).read_text().split()
    except (OSError, UnicodeDecodeError):
        return None  # the names are for people; the records do not need them
    return names if len(names) == layout.classes else None


def _from_image_folder(request: Request, layout: Layout) -> Loaded:
    loaded = image_folder.load(request)
    if loaded.classes != layout.classes:
        raise DamagedError(
            f"{request.directory}: {loaded.classes} class folders, but {request.name} has {layout.classes} classes",
            f"read other images with --data folder:{request.directory}",
        )
    return dataclasses.replace(loaded, mean=layout.mean, std=layout.std, augment=Augment(pad=4, flip=True))
