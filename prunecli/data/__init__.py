"""Data sets: a file a source and one table that lists them; opening one gives its splits in fast batches.

Importing this imports no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecli.data.arguments import COMMON, check_keys
from prunecli.data.base import Dataset, Order, Request, Split
from prunecli.errors import DamagedError, UsageError, nearest
from prunecli.trust import is_spec

__all__ = ["SOURCES", "Dataset", "Order", "Source", "Split", "open", "parse"]


@dataclass(frozen=True)
class Source:
    """A row of the table: the module whose `load` reads the source, and what it takes."""

    module: str
    what: str
    folder: bool = True
    arguments: tuple[str, ...] = ()


FOLDER_ARGUMENTS = ("cache", "resize", "workers")
SOURCES = {
    "digits": Source("prunecli.data.digits", "1,797 digits of 8x8 that ship with scikit-learn", folder=False),
    "mnist": Source("prunecli.data.mnist", "MNIST, IDX files, plain or gzipped", arguments=("border",)),
    "fashion-mnist": Source("prunecli.data.mnist", "Fashion-MNIST, IDX files, plain or gzipped", arguments=("border",)),
    "cifar10": Source("prunecli.data.cifar", "CIFAR-10, binary version or image folder", arguments=FOLDER_ARGUMENTS),
    "cifar100": Source("prunecli.data.cifar", "CIFAR-100, binary version or image folder", arguments=FOLDER_ARGUMENTS),
    "folder": Source("prunecli.data.folder", "train/CLASS/ and test/CLASS/ of images", arguments=FOLDER_ARGUMENTS),
}


def parse(text: str) -> tuple[str, str | None]:
    """(name, folder) of `--data`: `digits`, `mnist:DIR`, or `package.module:function`, which has no folder.

    Registered names come first. Raises `UsageError` for anything else.
    """
    name, _, directory = text.partition(":")
    if name in SOURCES:
        return name, directory or None
    if is_spec(text):
        return text, None
    raise UsageError(f"there is no data source {name!r}", nearest(name, SOURCES))


def open(
    name: str,
    directory: str | None,
    args: dict[str, Any],
    *,
    image_size: tuple[int, int, int] | None = None,
    val: float = 0.0,
    seed: int = 0,
    trust: Collection[str] = (),
) -> Dataset:
    """Open a data set with images of `image_size` (channels, height, width), None for the images' own.

    The share `val` of the training examples is held out, the same share of each class, by `seed`. A name
    `package.module:function` is imported only when its module is in `trust`. Raises `UsageError` for what makes no
    sense and `DamagedError` for files that are missing, damaged or not what they claim to be.
    """
    from prunecli.data.assemble import assemble, overridden

    if not 0 <= val < 1:
        raise UsageError(f"a validation share of {val:g}", "choose a share of 0 or more and below 1, such as 0.1")
    if image_size is not None and min(image_size) < 1:
        raise UsageError(f"an image size of {image_size}", "channels, height and width are 1 or more")
    request = Request(name, Path(directory) if directory else None, args, image_size, trust)
    source = SOURCES.get(name)
    if source is None:
        parse(name)  # raises for a name of another form
        loaded = importlib.import_module("prunecli.data.custom").load(request)
        return assemble(request, loaded, val, seed)
    if directory and not source.folder:
        raise UsageError(f"data source {name} has no folder", f"write --data {name}")
    check_keys(name, args, (*COMMON, *source.arguments))
    try:
        loaded = importlib.import_module(source.module).load(request)
    except OSError as error:
        where = error.filename or directory
        raise DamagedError(f"{where}: {error.strerror or error}", "check the folder and its permissions") from error
    return assemble(request, overridden(loaded, args, image_size or loaded.train.shape), val, seed)
