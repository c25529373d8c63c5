"""What a data source hands over and what a training loop gets, as plain types; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prunecli import sidecar

if TYPE_CHECKING:
    import random

    import torch
    from torch import Tensor


MEMORY_LIMIT = 1 << 30  # bytes of pixels: a set below it is held in memory as it is trained on


@dataclass(frozen=True)
class Order:
    """A training order: what a step sees, and how augmented, follows from (seed, epoch, step) alone."""

    seed: int
    epoch: int
    augment: bool = False


class Split(Protocol):
    """The examples of one split, in batches."""

    def __len__(self) -> int: ...

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch; the last one may be smaller or, in place of a further batch of one, larger."""

    def batches(
        self, batch_size: int, *, order: Order | None = None, start: int = 0, device: str | torch.device = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (x, y) from step `start` on: x float32 [N, C, H, W], normalised, and y int64 [N], both on `device`.

        Without an order: the files' order, not augmented. With one: every example once, in an order and with
        augmentations that do not depend on where the epoch was entered.
        """


@dataclass(frozen=True)
class Dataset:
    """An opened data set; `val` is the part of the training examples that was held out, if any."""

    info: sidecar.Data
    train: Split
    test: Split
    val: Split | None = None


@dataclass(frozen=True)
class Request:
    """What a source is asked for. `image_size` is (channels, height, width), None for the images' own."""

    name: str
    directory: Path | None
    args: dict[str, Any]
    image_size: tuple[int, int, int] | None
    trust: Collection[str]


@dataclass(frozen=True)
class Augment:
    """Random shifts of up to `pad` pixels each way, filled with zeros, and mirroring left to right every other time."""

    pad: int = 0
    flip: bool = False


@dataclass(frozen=True)
class Fit:
    """How images reach `size` (height, width): by zeros around them up to `border` pixels a side, else bilinearly."""

    size: tuple[int, int]
    border: int = 0


class Reader(Protocol):
    """Random access to images too many to be held in memory; it is sent to worker processes."""

    def read(self, index: int, rng: random.Random | None) -> Tensor:
        """Image `index`, uint8 or float32 [C, H, W], always of one shape; augmented with numbers drawn from `rng`."""


@dataclass(frozen=True)
class InMemory:
    """Images [N, C, H, W], uint8 or float32 (then used as they are), and labels int64 [N]."""

    images: Tensor
    labels: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class Streamed:
    """Images of `shape` that worker processes read when they are needed, and their labels int64 [N]."""

    reader: Reader
    labels: Tensor
    shape: tuple[int, int, int]
    workers: int


Examples = InMemory | Streamed


@dataclass(frozen=True)
class Loaded:
    """What a source hands over. `mean` and `std` are those of x / 255 a channel, None where none are published.

    `border` is that of `Fit`.
    """

    train: Examples
    test: Examples
    classes: int
    class_names: list[str] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: Augment = Augment()
    border: int = 0
