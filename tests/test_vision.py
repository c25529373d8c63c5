"""torchvision imports beside any torch, and its `nms` follows the definition where the compiled one does not load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunecli.vision import load_compiled_operators, nms, torchvision


def python(code: str) -> str:
    """Standard output and error of a fresh interpreter in which every warning is an error."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def by_definition(boxes: list[tuple[int, ...]], scores: list[float], threshold: float) -> list[int]:
    """Greedy suppression written out with sets of unit cells."""

    def cells(box: tuple[int, ...]) -> set[tuple[int, int]]:
        x1, y1, x2, y2 = box
        return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}

    def overlap(a: int, b: int) -> float:
        both, either = cells(boxes[a]) & cells(boxes[b]), cells(boxes[a]) | cells(boxes[b])
        return len(both) / len(either) if either else 0.0

    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(overlap(i, j) <= threshold for j in kept):
            kept.append(i)
    return kept


def box_list() -> st.SearchStrategy[list[tuple[int, ...]]]:
    corner = st.integers(0, 6)
    one = st.tuples(corner, corner, corner, corner)
    return st.lists(one.map(lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))), max_size=9)


@given(boxes=box_list(), threshold=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), data=st.data())
def test_nms_is_its_definition(boxes: list[tuple[int, ...]], threshold: float, data: st.DataObject) -> None:
    score = st.sampled_from([0.1, 0.2, 0.3, 0.9])
    scores = data.draw(st.lists(score, min_size=len(boxes), max_size=len(boxes)))
    kept = nms(torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4), torch.tensor(scores), threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == by_definition(boxes, scores, threshold)


BOXES = torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0], [5.0, 5.0, 6.0, 6.0], [0.0, 0.0, 2.0, 1.0]])
SCORES = torch.tensor([0.5, 0.6, 0.1, 0.5])  # boxes 0 and 1 overlap by exactly one half, 0 and 3 are the same


@pytest.mark.parametrize("threshold, kept", [(0.5, [1, 0, 2]), (0.49, [1, 2]), (1.0, [1, 0, 3, 2])])
@pytest.mark.parametrize("call", [nms, torchvision.ops.nms, torch.ops.torchvision.nms])
def test_a_box_at_the_threshold_stays_and_ties_keep_their_order(call, threshold: float, kept: list[int]) -> None:
    assert call(BOXES, SCORES, threshold).tolist() == kept


def test_batched_nms_keeps_classes_apart() -> None:
    kept = torchvision.ops.batched_nms(BOXES, SCORES, torch.tensor([0, 1, 0, 0]), 0.3)
    assert kept.tolist() == [1, 0, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int64])
def test_nms_takes_every_number_type_of_boxes(dtype: torch.dtype) -> None:
    assert nms((BOXES * 100).to(dtype), SCORES, 0.49).tolist() == [1, 2]


def test_nms_of_nothing_is_nothing() -> None:
    kept: Tensor = torchvision.ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.int64


def test_import_is_silent_and_complete() -> None:
    code = """
        from prunecli.vision import torchvision
        print(torchvision.models.resnet18.__name__, torchvision.datasets.CIFAR10.__name__, torchvision.transforms)
    """
    assert python("\n".join(line.strip() for line in code.splitlines())).startswith("resnet18 CIFAR10 <module")


def test_operators_that_load_are_not_replaced() -> None:
    code = """
import torch
from torch.library import Library
library = Library("torchvision", "DEF")  # stands for a compiled library that fits
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.impl("nms", lambda boxes, scores, threshold: torch.tensor([42]), "CompositeExplicitAutograd")
from prunecli.vision import torchvision
print(torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5).item())
print(torchvision.ops.boxes._assert_has_ops.__name__)
"""
    assert python(code).split() == ["42", "_assert_has_ops"]


def test_a_broken_compiled_library_is_passed_over(tmp_path: Path) -> None:
    before = hasattr(torch.ops.torchvision, "nms")
    (tmp_path / "_C.so").write_bytes(b"not a library")
    assert load_compiled_operators(tmp_path) == before
