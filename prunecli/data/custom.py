"""A user's own data: `package.module:function` is called with the data arguments and returns both splits."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunecli.data.base import MEMORY_LIMIT, Augment, Examples, InMemory, Loaded, Request, Streamed
from prunecli.errors import DamagedError, UsageError
from prunecli.trust import load_object

WORKERS = 4
CONTRACT = "return a dict of train and test, each (images [N, C, H, W], labels [N]) or a torch Dataset"


@dataclass(frozen=True)
class DatasetReader:
    """Reads single images of a map-style data set; random augmentation, if any, is the data set's own."""

    dataset: Any
    where: str
    shape: tuple[int, ...]

    def read(self, index: int, rng: object) -> Tensor:
        """Image `index`, uint8 or float32 [C, H, W]. Raises `DamagedError`."""
        image, _ = self.pair(index)
        if image.shape != self.shape:
            raise DamagedError(
                f"{self.where}[{index}] has shape {list(image.shape)}, the first image {list(self.shape)}",
                "make all images of one size",
            )
        return image

    def pair(self, index: int) -> tuple[Tensor, int]:
        """Example `index` as (image, label)."""
        try:
            image, label = self.dataset[index]
            return _image(image), int(label)
        except Exception as error:  # foreign code may raise anything
            raise DamagedError(f"{self.where}[{index}] failed: {type(error).__name__}: {error}", CONTRACT) from error


def load(request: Request) -> Loaded:
    """Call the function and check what it returns.

    Beside `train` and `test` it may return `classes`, `class_names`, `mean` and `std` (of x / 255, for uint8 images),
    `pad` and `flip` (what augmentation may do; nothing by default). Float images are used as they are.
    """
    function = load_object(request.name, request.trust)
    try:
        result = function(**request.args)
    except Exception as error:
        raise UsageError(
            f"{request.name} failed: {type(error).__name__}: {error}", "see where with --debug, or check its --data-arg"
        ) from error
    found = result if isinstance(result, dict) else getattr(result, "__dict__", {})
    if not {"train", "test"} <= found.keys():
        raise DamagedError(f"{request.name} returned a {type(result).__name__} without train and test", CONTRACT)
    train = _examples(found["train"], f"{request.name} train")
    test = _examples(found["test"], f"{request.name} test")
    if train.shape != test.shape:
        raise DamagedError(f"{request.name}: images of shape {train.shape} in train, {test.shape} in test", CONTRACT)
    if len({part.images.dtype for part in (train, test) if isinstance(part, InMemory)}) > 1:
        raise DamagedError(f"{request.name}: images are uint8 in one split, float in the other", CONTRACT)
    names = found.get("class_names")
    return Loaded(
        train=train,
        test=test,
        classes=int(found.get("classes") or (len(names) if names else int(train.labels.max()) + 1)),
        class_names=list(names) if names else None,
        mean=_statistic(found.get("mean")),
        std=_statistic(found.get("std")),
        augment=Augment(pad=int(found.get("pad", 0)), flip=bool(found.get("flip", False))),
    )


def _examples(part: Any, where: str) -> Examples:
    if isinstance(part, tuple | list) and len(part) == 2 and hasattr(part[0], "shape"):
        return InMemory(_images(torch.as_tensor(part[0]), where), _labels(part[1], where, len(part[0])))
    if not isinstance(part, Sized) or not hasattr(part, "__getitem__") or len(part) == 0:
        raise DamagedError(f"{where} is a {type(part).__name__} without examples", CONTRACT)
    first, _ = DatasetReader(part, where, ()).pair(0)
    reader = DatasetReader(part, where, tuple(_images(first[None], where).shape[1:]))
    if len(part) * first.numel() * first.element_size() > MEMORY_LIMIT:
        targets = getattr(part, "targets", None)
        if targets is None:
            raise DamagedError(
                f"{where}: too large for memory, and without a list of labels",
                "give the Dataset an attribute `targets`",
            )
        channels, height, width = reader.shape
        return Streamed(reader, _labels(targets, where, len(part)), (channels, height, width), WORKERS)
    images = torch.empty((len(part), *reader.shape), dtype=first.dtype)
    labels = torch.empty(len(part), dtype=torch.int64)
    for index in range(len(part)):
        image, label = reader.pair(index)
        if image.shape != reader.shape:
            reader.read(index, None)  # raises, naming the image
        images[index], labels[index] = image, label
    return InMemory(_images(images, where), _labels(labels, where, len(part)))


def _image(image: Any) -> Tensor:
    """A tensor [C, H, W] as it is; a Pillow image or array [H, W] or [H, W, C] with the channels first."""
    if isinstance(image, Tensor):
        return image if image.dtype == torch.uint8 else image.float()
    array = torch.from_numpy(np.array(image))
    return array[None] if array.ndim == 2 else array.permute(2, 0, 1)


def _images(images: Tensor, where: str) -> Tensor:
    if images.ndim != 4 or not images.numel():
        raise DamagedError(f"{where}: images of shape {list(images.shape)}, not [N, C, H, W]", CONTRACT)
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DamagedError(f"{where}: images of type {images.dtype}, neither uint8 nor float", CONTRACT)
    if not bool(images.isfinite().all()):
        raise DamagedError(f"{where}: an image has values that are not finite", "clean the images")
    return images.float()


def _labels(labels: Any, where: str, count: int) -> Tensor:
    tensor = torch.as_tensor(labels)
    if tensor.ndim != 1 or len(tensor) != count or tensor.is_floating_point():
        raise DamagedError(
            f"{where}: labels of shape {list(tensor.shape)} and type {tensor.dtype} for {count} images", CONTRACT
        )
    return tensor.long()


def _statistic(value: Any) -> tuple[float, ...] | None:
    return None if value is None else tuple(float(number) for number in torch.as_tensor(value).flatten())
