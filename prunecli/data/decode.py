"""Decoding one image of a folder: to the wanted channels and size, cropped centrally, or at random for training."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunecli.errors import DamagedError

Box = tuple[float, float, float, float]  # left, top, right, bottom
AREA = (0.08, 1.0)  # shares of the image, and aspect ratios, that a random crop may have (Szegedy et al. 2015)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10


@dataclass(frozen=True)
class FolderReader:
    """Reads image files as uint8 `shape` (channels, height, width).

    An image of exactly that size is taken as it is. From any other, the central `crop` share of the largest part with
    the wanted aspect ratio is interpolated (bilinear, antialiased).
    """

    paths: list[str]
    shape: tuple[int, int, int]
    crop: float

    def read(self, index: int, rng: random.Random | None) -> Tensor:
        """Image `index`; with `rng`, a random part of it, mirrored every other time. Raises `DamagedError`."""
        return torch.from_numpy(self.pixels(index, rng).copy())

    def pixels(self, index: int, rng: random.Random | None) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The same as an array."""
        channels, height, width = self.shape
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                picture = _converted(image, channels)
                if rng is not None:
                    box = random_box(picture.size, rng)
                    picture = picture.resize((width, height), Image.Resampling.BILINEAR, box=box)
                    if rng.random() < 0.5:
                        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                elif picture.size != (width, height):
                    box = central_box(picture.size, (width, height), self.crop)
                    picture = picture.resize((width, height), Image.Resampling.BILINEAR, box=box)
                return np.asarray(picture).reshape(height, width, channels).transpose(2, 0, 1)
        except Exception as error:  # decoders raise errors of many classes for damaged files
            raise _unreadable(path, error) from error


def probe(path: str) -> tuple[int, int, int]:
    """(channels, height, width) from an image's header: one channel for grey, else three. Raises `DamagedError`."""
    try:
        with Image.open(path) as image:
            return 1 if image.mode in ("1", "L", "I;16") else 3, image.height, image.width
    except Exception as error:
        raise _unreadable(path, error) from error


def central_box(size: tuple[int, int], target: tuple[int, int], share: float) -> Box:
    """The central part of an image of `size` with the aspect ratio of `target`; both are (width, height)."""
    scale = min(size[0] / target[0], size[1] / target[1]) * share
    width, height = target[0] * scale, target[1] * scale
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return left, top, left + width, top + height


def random_box(size: tuple[int, int], rng: random.Random) -> Box:
    """A random part of an image of `size` (width, height): area uniform, aspect ratio log-uniform, place uniform."""
    for _ in range(ATTEMPTS):
        area = size[0] * size[1] * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= size[0] and 0 < height <= size[1]:
            left, top = rng.randint(0, size[0] - width), rng.randint(0, size[1] - height)
            return left, top, left + width, top + height
    side = min(size)
    return central_box(size, (side, side), 1.0)


def _converted(image: Image.Image, channels: int) -> Image.Image:
    if "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns when it drops a palette's transparency on the way to other modes
    return image.convert("L" if channels == 1 else "RGB")


def _unreadable(path: str, error: Exception) -> DamagedError:
    return DamagedError(f"{path}: cannot be read as an image ({error})", "replace the file or remove it")
