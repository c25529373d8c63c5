"""Image folders: `train` and `test` (or `val`) folders, in them one folder of images for each class.

Sets that fit are decoded once, into memory; larger ones are read by worker processes while the network trains.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prunecli.data.arguments import choice, whole
from prunecli.data.base import MEMORY_LIMIT, Augment, Examples, InMemory, Loaded, Request, Streamed
from prunecli.data.decode import FolderReader, probe
from prunecli.data.locate import folder_of
from prunecli.errors import DamagedError, UsageError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
BLOCK = 64  # images that a thread decodes at a time: handing over single small ones costs a third of the time
DEFAULT_SIDE = 224  # for images of different sizes, when no image size is asked for
LARGE_SIDE = 128  # from here on the test crop leaves a border out: 224 of 256, the usual evaluation of ImageNet


@dataclass(frozen=True)
class _Files:
    folder: Path
    classes: list[str]
    paths: list[str]
    labels: list[int]


def has_splits(folder: Path) -> bool:
    """Whether there are `train` and `test` or `val` folders."""
    return (folder / "train").is_dir() and _test_folder(folder).is_dir()


def load(request: Request) -> Loaded:
    """Arguments: `cache` (auto, memory, stream), `resize` (shorter side before the test crop), `workers`.

    `cache=auto` decodes everything once when both splits together take up to 1 GiB at the wanted size.
    """
    folder = folder_of(request)
    if not has_splits(folder):
        raise DamagedError(
            f"{folder}: no train/ and test/ (or val/) folders there",
            "sort the images into train/CLASS/ and test/CLASS/",
        )
    train, test = _scan(folder / "train"), _scan(_test_folder(folder))
    for name in sorted(set(train.classes) ^ set(test.classes)):
        missing, there = (test, train) if name in train.classes else (train, test)
        raise DamagedError(
            f"{missing.folder}: no class folder {name!r}, which {there.folder.name}/ has",
            "give both the same class folders",
        )
    shape = request.image_size or _own_size(train.paths + test.paths)
    if shape[0] not in (1, 3):
        raise UsageError(f"image files give 1 or 3 channels, not {shape[0]}", "choose a network for 1 or 3 channels")
    side = min(shape[1:])
    resize = whole(request.args, "resize", round(side * 256 / 224) if side >= LARGE_SIDE else side, low=side)
    workers = whole(request.args, "workers", min(8, os.cpu_count() or 1), high=128)
    cache = choice(request.args, "cache", ("auto", "memory", "stream"))
    size = (len(train.paths) + len(test.paths)) * shape[0] * shape[1] * shape[2]
    in_memory = cache == "memory" or (cache == "auto" and size <= MEMORY_LIMIT)

    def examples(files: _Files) -> Examples:
        reader = FolderReader(files.paths, shape, crop=side / resize)
        labels = torch.tensor(files.labels)
        return _decoded(reader, labels, workers) if in_memory else Streamed(reader, labels, shape, workers)

    return Loaded(
        train=examples(train),
        test=examples(test),
        classes=len(train.classes),
        class_names=train.classes,
        augment=Augment(pad=max(1, side // 8), flip=True),
    )


def _test_folder(folder: Path) -> Path:
    return folder / "test" if (folder / "test").is_dir() else folder / "val"


def _scan(folder: Path) -> _Files:
    """The images in the class folders, all by name, so that the order does not depend on the file system."""
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise DamagedError(f"{folder}: no class folders there", f"sort the images into {folder}/CLASS/")
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(
            str(Path(place, file))
            for place, _, files in os.walk(folder / name, followlinks=True)
            for file in files
            if Path(file).suffix.lower() in EXTENSIONS and not file.startswith(".")
        )
        if not found:
            raise DamagedError(
                f"{folder / name}: no images there",
                "put images there, or remove the folder; known are " + " ".join(sorted(EXTENSIONS)),
            )
        paths += found
        labels += [label] * len(found)
    return _Files(folder, classes, paths, labels)


def _own_size(paths: list[str]) -> tuple[int, int, int]:
    """The shape of all images when they agree in it; the channels of the first, and 224 pixels a side, when not."""
    channels, height, width = probe(paths[0])
    if all(probe(path)[1:] == (height, width) for path in paths):
        return channels, height, width
    return channels, DEFAULT_SIDE, DEFAULT_SIDE


def _decoded(reader: FolderReader, labels: torch.Tensor, workers: int) -> InMemory:
    pixels = np.empty((len(labels), *reader.shape), dtype=np.uint8)

    def decode(start: int) -> None:
        for index in range(start, min(start + BLOCK, len(labels))):
            pixels[index] = reader.pixels(index, None)

    with ThreadPoolExecutor(max(1, workers)) as pool:  # Pillow decodes without holding the interpreter's lock
        for _ in pool.map(decode, range(0, len(labels), BLOCK)):
            pass  # only to raise the first error
    return InMemory(torch.from_numpy(pixels), labels)
