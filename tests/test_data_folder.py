"""Image folders: decoded into memory or streamed, with the same images; and every way in which they may be damaged."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from prunecli import data
from prunecli.data import Order
from prunecli.data.decode import FolderReader, central_box, random_box
from prunecli.data.stream import StreamSplit
from prunecli.errors import DamagedError, UsageError


def picture(number: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Image.Image:
    numbers = np.random.default_rng(number)
    return Image.fromarray(numbers.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def write(folder: Path, sizes: list[tuple[int, int]] | None = None, test: str = "test") -> Path:
    """Three classes, five training and two test images each, all 12 wide and 10 high or cycling through `sizes`."""
    number = 0
    for split, count in (("train", 5), (test, 2)):
        for name in ("cat", "ant", "bee"):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                size = sizes[number % len(sizes)] if sizes else (12, 10)
                picture(number, size).save(folder / split / name / f"{index}.png")
                number += 1
    return folder


def everything(split: data.Split, order: Order | None = None, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    return list(split.batches(4, order=order, start=start))


def same(left: list[tuple[Tensor, Tensor]], right: list[tuple[Tensor, Tensor]]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(x1, x2) and torch.equal(y1, y2) for (x1, y1), (x2, y2) in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("test", ["test", "val"])
def test_classes_by_name_and_pixels_as_they_are(tmp_path: Path, test: str) -> None:
    opened = data.open("folder", str(write(tmp_path, test=test)), {"mean": 0, "std": 1})
    assert opened.info.class_names == ["ant", "bee", "cat"]
    assert opened.info.shape == [3, 10, 12]
    assert (opened.info.train_size, opened.info.test_size, opened.info.classes) == (15, 6, 3)
    x, y = next(opened.train.batches(15))
    assert y.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    expected = torch.from_numpy(np.array(picture(0))).permute(2, 0, 1)  # cat/0.png
    torch.testing.assert_close(x[10], expected / 255, rtol=0, atol=1e-6)


def test_test_goes_before_val(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "val" / "other").mkdir(parents=True)
    assert len(data.open("folder", str(tmp_path), {}).test) == 6


@pytest.mark.parametrize("image_size", [None, (3, 10, 12), (1, 8, 8), (3, 16, 8)])
def test_streamed_images_are_those_in_memory(tmp_path: Path, image_size: tuple[int, int, int] | None) -> None:
    write(tmp_path, None if image_size is None else [(12, 10), (7, 31), (40, 20)])
    opened = [
        data.open("folder", str(tmp_path), {"cache": cache, "workers": 0}, image_size=image_size, val=0.2)
        for cache in ("memory", "stream")
    ]
    assert isinstance(opened[1].train, StreamSplit)
    assert opened[0].info.mean == opened[1].info.mean
    for name in ("train", "test", "val"):
        for order in (None, Order(3, 1)):
            assert same(*(everything(getattr(dataset, name), order) for dataset in opened))


def test_streamed_epoch_is_a_function_of_its_order(tmp_path: Path) -> None:
    write(tmp_path)
    split = data.open("folder", str(tmp_path), {"cache": "stream", "workers": 0}, image_size=(3, 8, 8)).train
    order = Order(1, 2, augment=True)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = everything(split, order)
    assert torch.equal(before, torch.get_rng_state())
    assert same(batches, everything(split, order))
    assert same(batches[2:], everything(split, order, start=2))
    assert sorted(torch.cat([y for _, y in batches]).tolist()) == [0] * 5 + [1] * 5 + [2] * 5
    assert not same(batches, everything(split, Order(1, 3, augment=True)))
    assert not same(batches, everything(split, Order(1, 2, augment=False)))


def test_worker_processes_give_the_same(tmp_path: Path) -> None:
    write(tmp_path)
    order = Order(1, 2, augment=True)
    alone, helped = (
        data.open("folder", str(tmp_path), {"cache": "stream", "workers": workers}, image_size=(3, 8, 8))
        for workers in (0, 2)
    )
    assert same(everything(alone.train, order), everything(helped.train, order))
    broken = tmp_path / "train" / "ant" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    for opened in (alone, helped):
        with pytest.raises(DamagedError, match=r"ant/2\.png: cannot be read as an image"):
            everything(opened.train, order)


def test_images_of_different_sizes_get_the_usual_one(tmp_path: Path) -> None:
    write(tmp_path, [(12, 10), (10, 12)])
    assert data.open("folder", str(tmp_path), {}).info.shape == [3, 224, 224]


def test_grey_images_stay_grey_unless_asked(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        picture(1, mode="L").save(tmp_path / split / "a" / "x.png")
    assert data.open("folder", str(tmp_path), {}).info.shape == [1, 10, 12]
    x, _ = next(data.open("folder", str(tmp_path), {}, image_size=(3, 10, 12)).test.batches(1))
    assert torch.equal(x[:, 0], x[:, 2])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_is_decoded(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    picture(3, mode=mode).save(tmp_path / f"x.{suffix}", **({"transparency": b"\0\1"} if mode == "P" else {}))
    for channels in (1, 3):
        image = FolderReader([str(tmp_path / f"x.{suffix}")], (channels, 10, 12), 1.0).read(0, None)
        assert image.shape == (channels, 10, 12)
        assert image.dtype == torch.uint8


def test_central_box_by_hand() -> None:
    assert central_box((100, 50), (10, 10), 1.0) == (25.0, 0.0, 75.0, 50.0)
    assert central_box((256, 256), (224, 224), 224 / 256) == (16.0, 16.0, 240.0, 240.0)
    assert central_box((30, 60), (20, 10), 1.0) == (0.0, 22.5, 30.0, 37.5)


def test_random_boxes_are_inside_and_of_the_promised_area() -> None:
    rng = random.Random(0)
    for size in ((40, 30), (500, 375), (7, 90)):
        for _ in range(300):
            left, top, right, bottom = random_box(size, rng)
            assert 0 <= left < right <= size[0]
            assert 0 <= top < bottom <= size[1]
            if size[0] > 100:
                area = (right - left) * (bottom - top) / (size[0] * size[1])
                assert 0.075 < area <= 1
                assert 0.74 < (right - left) / (bottom - top) < 1.35


def test_arguments_are_checked(tmp_path: Path) -> None:
    write(tmp_path)
    for args, named in (({"cache": "disk"}, "cache"), ({"resize": 4}, "resize"), ({"workers": 10**6}, "workers")):
        with pytest.raises(UsageError, match=named):
            data.open("folder", str(tmp_path), args, image_size=(3, 8, 8))
    with pytest.raises(UsageError, match="channels"):
        data.open("folder", str(tmp_path), {}, image_size=(4, 8, 8))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="no train/ and test/"):
        data.open("folder", str(tmp_path), {})
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(DamagedError, match="train: no class folders"):
        data.open("folder", str(tmp_path), {})
    (tmp_path / "train" / "ant").mkdir()
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    with pytest.raises(DamagedError, match="ant: no images"):
        data.open("folder", str(tmp_path), {})


@pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "train")])
def test_classes_that_differ_are_named(tmp_path: Path, split: str, other: str) -> None:
    write(tmp_path)
    (tmp_path / split / "dog").mkdir()
    picture(9).save(tmp_path / split / "dog" / "0.png")
    with pytest.raises(DamagedError, match=f"{other}: no class folder 'dog', which {split}/ has"):
        data.open("folder", str(tmp_path), {})


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_damaged_image_is_named(tmp_path: Path, content: bytes | None) -> None:
    write(tmp_path)
    path = tmp_path / "train" / "bee" / "3.png"
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with pytest.raises(DamagedError) as caught:
        data.open("folder", str(tmp_path), {}, image_size=(3, 10, 12))
    assert str(path) in caught.value.message
    assert caught.value.hint
