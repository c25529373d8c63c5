"""The 1,797 handwritten digits that ship inside scikit-learn: 8x8 pixels, 17 shades of grey.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (its
test set). They come without a split of their own. Here a fixed stratified 360 of them are the test set.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from prunecli.data.base import Augment, InMemory, Loaded, Request
from prunecli.data.randomness import stratified
from prunecli.errors import UsageError

TEST_SIZE = 360
SPLIT_SEED = 0  # of the test set, the same whatever the seed of a run


def load(request: Request) -> Loaded:
    """Grey 0..16 becomes uint8 0..255; a larger image size is met by bilinear interpolation."""
    table = np.loadtxt(_table(), delimiter=",")  # 64 pixels and a label a row
    images = torch.from_numpy(np.rint(table[:, :64] * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, 64].astype(np.int64))
    train, test = stratified(labels, TEST_SIZE, SPLIT_SEED)
    return Loaded(
        train=InMemory(images[train], labels[train]),
        test=InMemory(images[test], labels[test]),
        classes=10,
        class_names=[str(digit) for digit in range(10)],
        augment=Augment(pad=2),
    )


def _table() -> Path:
    """The file that `sklearn.datasets.load_digits` reads, found without importing scikit-learn (a second)."""
    spec = importlib.util.find_spec("sklearn")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return path
    raise UsageError("the digits are part of scikit-learn, which is not installed", "pip install scikit-learn")
