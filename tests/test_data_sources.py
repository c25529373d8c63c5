"""The table of sources, the embedded digits, held-out examples, and data from a user's own function."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prunecli import data
from prunecli.data import Order
from prunecli.errors import DamagedError, UsageError

USER = """
import torch
from torch.utils.data import Dataset

def pixels(count, channels=3, size=6):
    numbers = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=numbers)

def uint8(classes=4):
    return {"train": (pixels(20), torch.arange(20) % classes), "test": (pixels(8).numpy(), list(range(4)) * 2),
            "class_names": list("abcd")[:classes], "mean": [0.5], "std": [0.25], "pad": 1, "flip": True}

class Floats:
    def __init__(self):
        self.train = pixels(20, 1).float() / 7, torch.arange(20) % 2
        self.test = pixels(8, 1).float() / 7, torch.arange(8) % 2

class Pairs(Dataset):
    def __init__(self, count):
        self.images, self.targets = pixels(count), [i % 4 for i in range(count)]
    def __len__(self):
        return len(self.images)
    def __getitem__(self, index):
        return self.images[index], self.targets[index]

def datasets():
    return {"train": Pairs(20), "test": Pairs(8)}

class Uneven(Pairs):
    def __getitem__(self, index):
        return self.images[index, :, : 5 if index == 3 else 6], 0

def uneven():
    return {"train": Uneven(20), "test": Pairs(8)}

def sizes():
    return {"train": Pairs(20), "test": (pixels(4, size=7), torch.arange(4))}

def mixed():
    return {"train": Pairs(20), "test": (pixels(4).float(), torch.arange(4))}

def broken():
    raise KeyError("inside")

def nothing():
    return 3

def negative():
    return {"train": (pixels(4), torch.tensor([0, 1, -1, 0])), "test": (pixels(4), torch.zeros(4, dtype=torch.int64))}

def beyond():
    return {"train": (pixels(4), torch.arange(4) % 2), "test": (pixels(4), torch.arange(4))}

def flat():
    return {"train": (pixels(4)[:, 0], torch.arange(4)), "test": (pixels(4), torch.arange(4))}

def few():
    return {"train": (pixels(4), torch.arange(3)), "test": (pixels(4), torch.arange(4))}

def infinite():
    return {"train": (pixels(4) / 0.0, torch.arange(4)), "test": (pixels(4), torch.arange(4))}

def integers():
    return {"train": (pixels(4).long(), torch.arange(4)), "test": (pixels(4), torch.arange(4))}
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module of a user, in the current folder."""
    (tmp_path / "data_user.py").write_text(USER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "data_user", raising=False)
    return "data_user"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("digits", ("digits", None)),
        ("mnist:../shared/data", ("mnist", "../shared/data")),
        ("folder:/a:b", ("folder", "/a:b")),
        ("mnist:", ("mnist", None)),
        ("my.module:function", ("my.module:function", None)),
    ],
)
def test_parse(text: str, expected: tuple[str, str | None]) -> None:
    assert data.parse(text) == expected


@pytest.mark.parametrize("text", ["mnst:../data", "digit", "", "cifar-10:x/y"])
def test_parse_refuses_unknown_names(text: str) -> None:
    with pytest.raises(UsageError, match="no data source"):
        data.parse(text)


def test_importing_the_table_imports_no_torch() -> None:
    code = "import sys, prunecli.data; sys.exit(bool({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0


def test_digits_are_those_of_scikit_learn() -> None:
    digits = data.open("digits", None, {})
    assert (len(digits.train), len(digits.test), digits.val) == (1437, 360, None)
    assert digits.info.shape == [1, 8, 8]
    assert digits.info.classes == 10
    from sklearn.datasets import load_digits

    original = load_digits()
    mean, std = digits.info.mean[0], digits.info.std[0]
    rows = set()
    for split in (digits.train, digits.test):
        ((x, y),) = split.batches(2000)
        shades = ((x * std + mean) * 16).round().int().flatten(1)
        rows |= {(*shade, label) for shade, label in zip(shades.tolist(), y.tolist(), strict=True)}
    expected = {(*shade, label) for shade, label in zip(original.data.tolist(), original.target.tolist(), strict=True)}
    assert rows == expected
    ((x, y),) = digits.train.batches(2000)
    assert abs(float(x.mean())) < 1e-4
    assert abs(float(x.std()) - 1) < 1e-3
    assert (y.bincount() >= 139).all()  # 174 to 183 of each, four fifths of them


def test_digits_in_the_size_of_a_network() -> None:
    grey, colour = (data.open("digits", None, {}, image_size=shape) for shape in ((1, 32, 32), (3, 32, 32)))
    assert colour.info.shape == [3, 32, 32]
    assert colour.info.mean == grey.info.mean * 3
    x, y = next(grey.train.batches(10, order=Order(0, 0, augment=True)))
    x3, y3 = next(colour.train.batches(10, order=Order(0, 0, augment=True)))
    assert x.shape == (10, 1, 32, 32)
    assert torch.equal(x3, x.expand(-1, 3, -1, -1))
    assert torch.equal(y, y3)


def test_opening_twice_gives_the_same() -> None:
    first, second = (data.open("digits", None, {}, val=0.2, seed=5) for _ in range(2))
    assert first.info == second.info
    assert torch.equal(next(first.train.batches(64))[0], next(second.train.batches(64))[0])


def test_held_out_examples_are_a_stratified_part_of_train() -> None:
    whole = data.open("digits", None, {})
    parts = data.open("digits", None, {}, val=0.1, seed=3)
    other = data.open("digits", None, {}, val=0.1, seed=4)
    assert parts.val is not None
    assert other.val is not None
    assert (len(parts.train), len(parts.val), len(parts.test)) == (1293, 144, 360)
    assert (parts.info.train_size, parts.info.val) == (1293, 0.1)
    assert parts.info.mean == whole.info.mean  # normalisation does not depend on what is held out
    images = [next(iter(split.batches(2000)))[0].flatten(1) for split in (whole.train, parts.train, parts.val)]
    rows = [sorted(map(tuple, image.tolist())) for image in images]
    assert sorted(rows[1] + rows[2]) == rows[0]
    assert not set(rows[1]) & set(rows[2])
    assert (next(parts.val.batches(144))[1].bincount() >= 13).all()
    assert not torch.equal(next(parts.val.batches(144))[0], next(other.val.batches(144))[0])


@pytest.mark.parametrize("val", [-0.1, 1.0, 1e-9, 0.99999])
def test_impossible_validation_shares(val: float) -> None:
    with pytest.raises(UsageError, match="validation share"):
        data.open("digits", None, {}, val=val)


def test_normalisation_and_augmentation_can_be_given() -> None:
    info = data.open("digits", None, {"mean": 0.5, "std": "0.25,0.5,1", "pad": 0}, image_size=(3, 8, 8)).info
    assert (info.mean, info.std) == ([0.5] * 3, [0.25, 0.5, 1.0])
    unmoved = data.open("digits", None, {"pad": 0, "flip": False})
    left = next(unmoved.train.batches(32, order=Order(0, 0, augment=True)))[0]
    assert torch.equal(left, next(unmoved.train.batches(32, order=Order(0, 0, augment=False)))[0])


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({"paddd": 1}, "'paddd'"),
        ({"pad": -1}, "pad=-1"),
        ({"pad": 9}, "pad=9"),
        ({"pad": True}, "pad=True"),
        ({"flip": 1}, "flip=1"),
        ({"std": 0}, "std=0"),
        ({"mean": "a,b"}, "mean=a,b"),
        ({"mean": [0.1, 0.2]}, "mean="),
        ({"mean": "nan"}, "mean=nan"),
    ],
)
def test_wrong_arguments_are_named(args: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        data.open("digits", None, args)


def test_folders_where_none_or_one_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a folder"):
        data.open("mnist", None, {})
    with pytest.raises(UsageError, match="no folder"):
        data.open("digits", str(tmp_path), {})
    with pytest.raises(DamagedError, match="no such folder"):
        data.open("cifar10", str(tmp_path / "absent"), {})


def test_user_function_with_tensors(user: str) -> None:
    opened = data.open(f"{user}:uint8", None, {"classes": 4}, trust={user})
    assert opened.info.class_names == ["a", "b", "c", "d"]
    assert (opened.info.mean, opened.info.std) == ([0.5] * 3, [0.25] * 3)
    assert opened.info.args == {"classes": 4}
    x, y = next(opened.train.batches(20))
    original = torch.randint(0, 256, (20, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(20))
    torch.testing.assert_close(x, (original / 255 - 0.5) / 0.25, rtol=0, atol=1e-6)
    assert y.tolist() == [i % 4 for i in range(20)]
    moved = next(opened.train.batches(20, order=Order(0, 0, augment=True)))[0]
    assert not torch.equal(moved, next(opened.train.batches(20, order=Order(0, 0)))[0])


def test_user_function_with_floats_is_used_as_it_is(user: str) -> None:
    opened = data.open(f"{user}:Floats", None, {}, trust={user})
    x, _ = next(opened.train.batches(20))
    original = torch.randint(0, 256, (20, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(20))
    assert torch.equal(x, original.float() / 7)
    assert (x / 255 - opened.info.mean[0]) / opened.info.std[0] == pytest.approx(x)


def test_user_datasets_stacked_and_streamed_are_equal(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stacked = data.open(f"{user}:datasets", None, {}, image_size=(3, 8, 8), trust={user}, val=0.2)
    monkeypatch.setattr("prunecli.data.custom.MEMORY_LIMIT", 100)
    monkeypatch.setattr("prunecli.data.custom.WORKERS", 0)
    streamed = data.open(f"{user}:datasets", None, {}, image_size=(3, 8, 8), trust={user}, val=0.2)
    assert type(stacked.train) is not type(streamed.train)
    assert stacked.info == streamed.info
    for name in ("train", "test", "val"):
        for order in (None, Order(1, 1)):
            pairs = zip(
                getattr(stacked, name).batches(3, order=order),
                getattr(streamed, name).batches(3, order=order),
                strict=True,
            )
            assert all(torch.equal(x1, x2) and torch.equal(y1, y2) for (x1, y1), (x2, y2) in pairs)


@pytest.mark.parametrize(
    ("function", "kind", "named"),
    [
        ("broken", UsageError, "KeyError: 'inside'"),
        ("uint8x", UsageError, "uint8x"),
        ("nothing", DamagedError, "without train and test"),
        ("sizes", DamagedError, "7, 7. in test"),
        ("mixed", DamagedError, "float in the other"),
        ("negative", DamagedError, "label -1 in train"),
        ("beyond", DamagedError, "label 3 in test"),
        ("flat", DamagedError, "train: images of shape"),
        ("few", DamagedError, "train: labels of shape"),
        ("infinite", DamagedError, "not finite"),
        ("integers", DamagedError, "neither uint8 nor float"),
        ("uneven", DamagedError, r"train\[3\] has shape"),
    ],
)
def test_what_a_user_function_may_get_wrong(user: str, function: str, kind: type[Exception], named: str) -> None:
    with pytest.raises(kind, match=named):
        data.open(f"{user}:{function}", None, {}, trust={user})


def test_user_function_is_not_run_without_trust(user: str) -> None:
    with pytest.raises(UsageError) as caught:
        data.open(f"{user}:uint8", None, {})
    assert f"--trust {user}" in caught.value.hint
    assert user not in sys.modules
