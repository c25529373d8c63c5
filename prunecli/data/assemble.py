"""From what a source loaded to a data set: channels and size, normalisation, held-out examples, splits."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunecli import sidecar
from prunecli.data.arguments import flag, per_channel, whole
from prunecli.data.base import (
    MEMORY_LIMIT,
    Augment,
    Dataset,
    Examples,
    Fit,
    InMemory,
    Loaded,
    Reader,
    Request,
    Split,
    Streamed,
)
from prunecli.data.images import resized, statistics, with_channels
from prunecli.data.memory import MemorySplit
from prunecli.data.randomness import stratified
from prunecli.data.stream import StreamSplit
from prunecli.errors import DamagedError, UsageError

SAMPLE = 512  # images, evenly spaced, from which the statistics of a streamed set are computed
AS_THEY_ARE = 0.0, 1 / 255  # the mean and standard deviation that make (x / 255 - mean) / std equal to x


def assemble(request: Request, loaded: Loaded, val: float, seed: int) -> Dataset:
    """The data set with the share `val` of its training examples held out, the same share of each class, by `seed`.

    Statistics are those of all training examples, held out or not, so that they do not depend on `val`.
    """
    _check_labels(request.name, loaded)
    shape = request.image_size or loaded.train.shape
    fit = Fit(shape[1:], loaded.border)
    train, test = _fitted(loaded.train, shape, fit), _fitted(loaded.test, shape, fit)
    mean, std = _normalisation(request.name, loaded, train, shape[0])

    def split(part: Examples, members: Tensor) -> Split:
        if isinstance(part, Streamed):
            return StreamSplit(part, members, mean, std)
        if len(members) < len(part.labels):
            part = InMemory(part.images[members], part.labels[members])
        return MemorySplit(part, mean, std, loaded.augment, fit)

    kept, held = _held_out(train.labels, val, seed)
    info = sidecar.Data(
        name=request.name,
        dir=str(request.directory) if request.directory else None,
        args=request.args,
        classes=loaded.classes,
        class_names=loaded.class_names,
        shape=list(shape),
        mean=mean,
        std=std,
        train_size=len(kept),
        test_size=len(test.labels),
        val=val,
    )
    everything = torch.arange(len(test.labels))
    return Dataset(info, split(train, kept), split(test, everything), split(train, held) if len(held) else None)


def overridden(loaded: Loaded, args: dict[str, Any], shape: tuple[int, int, int]) -> Loaded:
    """`loaded` with the normalisation, augmentation and border that `args` ask for."""
    mean, std = per_channel(args, "mean", shape[0]), per_channel(args, "std", shape[0], low=0.0)
    pad = whole(args, "pad", min(loaded.augment.pad, *shape[1:]), high=min(shape[1:]))
    return dataclasses.replace(
        loaded,
        mean=tuple(mean) if mean else loaded.mean,
        std=tuple(std) if std else loaded.std,
        augment=Augment(pad, flag(args, "flip", loaded.augment.flip)),
        border=whole(args, "border", loaded.border),
    )


def _check_labels(name: str, loaded: Loaded) -> None:
    for split, part in (("train", loaded.train), ("test", loaded.test)):
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= loaded.classes:
            raise DamagedError(
                f"{name}: label {low if low < 0 else high} in {split}, but labels are 0 to {loaded.classes - 1}",
                "number the classes from 0, without gaps",
            )


@dataclass(frozen=True)
class _FittedReader:
    """Gives another reader's images the wanted channels and size."""

    reader: Reader
    channels: int
    fit: Fit

    def read(self, index: int, rng: Any) -> Tensor:
        return resized(with_channels(self.reader.read(index, rng)[None], self.channels), self.fit)[0]


def _fitted(part: Examples, shape: tuple[int, int, int], fit: Fit) -> Examples:
    """The examples with the wanted channels and, unless that would take too much memory, size."""
    if part.shape == shape:
        return part
    if isinstance(part, Streamed):
        return Streamed(_FittedReader(part.reader, shape[0], fit), part.labels, shape, part.workers)
    images = with_channels(part.images, shape[0])
    if len(images) * shape[0] * shape[1] * shape[2] * images.element_size() <= MEMORY_LIMIT:
        images = resized(images, fit)
    return InMemory(images, part.labels)


def _normalisation(name: str, loaded: Loaded, train: Examples, channels: int) -> tuple[list[float], list[float]]:
    """Published statistics where they are those of the wanted channels, else computed ones."""
    if _sample(train, 1).is_floating_point():
        if loaded.mean or loaded.std:
            raise UsageError(f"{name}: float images are used as they are, without mean and std", "return uint8 images")
        return [AS_THEY_ARE[0]] * channels, [AS_THEY_ARE[1]] * channels
    mean, std = (_of_channels(values, channels) for values in (loaded.mean, loaded.std))
    if mean and std:
        return mean, std
    computed = statistics(_sample(train, SAMPLE))
    return mean or computed[0], std or computed[1]


def _sample(part: Examples, count: int) -> Tensor:
    """All images where they are in memory, else `count` of them, evenly spaced."""
    if isinstance(part, InMemory):
        return part.images
    chosen = sorted({round(n) for n in torch.linspace(0, len(part.labels) - 1, count).tolist()})
    return torch.stack([part.reader.read(index, None) for index in chosen])


def _of_channels(values: tuple[float, ...] | None, channels: int) -> list[float] | None:
    if values is None or len(values) not in (1, channels):
        return None
    return list(values) if len(values) == channels else list(values) * channels


def _held_out(labels: Tensor, val: float, seed: int) -> tuple[Tensor, Tensor]:
    if not val:
        return torch.arange(len(labels)), torch.arange(0)
    count = round(val * len(labels))
    if not 0 < count < len(labels):
        raise UsageError(
            f"a validation share of {val:g} of {len(labels)} training images leaves one side empty", "choose 0.1"
        )
    return stratified(labels, count, seed)
