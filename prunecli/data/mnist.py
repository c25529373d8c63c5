"""MNIST and Fashion-MNIST: ten classes of 28x28 grey images in IDX files, plain or gzipped, as they are distributed.

Sources: LeCun, Bottou, Bengio, Haffner 1998; Xiao, Rasul, Vollgraf 2017 (arXiv 1708.07747).
"""

from __future__ import annotations

from pathlib import Path

from prunecli.data.base import Augment, InMemory, Loaded, Request
from prunecli.data.idx import read_idx
from prunecli.data.locate import first_with, folder_of
from prunecli.errors import DamagedError

CLASSES = 10
BORDER = 4  # 28x28 becomes 32x32 by two rows of zeros a side, as LeNet-5 wants it; `--data-arg border=0` resizes
FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def load(request: Request) -> Loaded:
    """The files in the folder itself, `raw`, or where torchvision puts them: `MNIST/raw`, `FashionMNIST/raw`."""
    fashion = request.name == "fashion-mnist"
    folder = folder_of(request)
    place = first_with(
        folder,
        ("raw", "FashionMNIST/raw" if fashion else "MNIST/raw"),
        ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"),
    )
    if place is None:
        raise DamagedError(
            f"{folder}: no file train-images-idx3-ubyte or train-images-idx3-ubyte.gz there",
            "name the folder of the four IDX files, or the one that holds it as raw/",
        )
    return Loaded(
        train=_examples(place, "train"),
        test=_examples(place, "t10k"),
        classes=CLASSES,
        class_names=FASHION if fashion else [str(digit) for digit in range(10)],
        mean=(0.2860,) if fashion else (0.1307,),
        std=(0.3530,) if fashion else (0.3081,),
        augment=Augment(pad=2),
        border=BORDER,
    )


def _examples(place: Path, split: str) -> InMemory:
    images_path, labels_path = _file(place, f"{split}-images-idx3-ubyte"), _file(place, f"{split}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, dimensions=3), read_idx(labels_path, dimensions=1)
    if len(images) != len(labels):
        raise DamagedError(f"{labels_path}: {len(labels)} labels for {len(images)} images", "download both files again")
    if int(labels.max()) >= CLASSES:
        raise DamagedError(
            f"{labels_path}: label {int(labels.max())} at example {int(labels.argmax())}, but labels are 0 to 9",
            "download the file again",
        )
    return InMemory(images.unsqueeze(1), labels.long())


def _file(place: Path, name: str) -> Path:
    for path in (place / name, place / f"{name}.gz"):
        if path.is_file():
            return path
    raise DamagedError(f"{place}: no file {name} or {name}.gz there", "put all four IDX files into one folder")
