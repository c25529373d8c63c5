"""Criteria on tensors small enough to score by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunecli.criteria import CRITERIA, aligned, bn_scale, bound, fpgm, l1, l2, magnitude

FILTERS = torch.tensor([[3.0, -4.0], [0.0, 0.0], [1.0, 1.0]])


def test_norms_by_hand() -> None:
    assert l1(FILTERS).tolist() == [7.0, 0.0, 2.0]
    assert l2(FILTERS).tolist() == pytest.approx([5.0, 0.0, math.sqrt(2)])


def test_fpgm_sums_distances_to_the_other_filters() -> None:
    near, far = math.sqrt(2), math.sqrt(4 + 25)
    assert fpgm(FILTERS).tolist() == pytest.approx([5 + far, 5 + near, near + far])


def test_fpgm_scores_equal_filters_equally_however_large_the_layer() -> None:
    filters = torch.randn(40, 300, generator=torch.Generator().manual_seed(0)) * 100
    filters[7] = filters[31]
    scores = fpgm(filters)
    assert torch.cdist(filters[7:8], filters[31:32]).item() == 0
    assert scores[7].item() == pytest.approx(scores[31].item(), rel=1e-6)


def test_fpgm_does_not_change_when_all_filters_move() -> None:
    assert fpgm(FILTERS + 5).tolist() == pytest.approx(fpgm(FILTERS).tolist())


def test_scale_and_magnitude_ignore_the_sign() -> None:
    assert bn_scale(torch.tensor([[-2.0], [0.5]])).tolist() == [2.0, 0.5]
    assert magnitude(torch.tensor([[-2.0, 0.0]])).tolist() == [[2.0, 0.0]]


@pytest.mark.parametrize("name", [name for name, c in CRITERIA.items() if c.seeded])
def test_random_criteria_are_functions_of_the_seed(name: str) -> None:
    tensor = torch.zeros(5, 3)
    draws = [bound(CRITERIA[name], seed)(tensor) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_consecutive_draws_of_one_random_criterion_differ() -> None:
    score = bound(CRITERIA["random"], 0)
    assert not torch.equal(score(torch.zeros(9, 0)), score(torch.zeros(9, 0)))


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))
def test_criteria_follow_their_units_when_these_are_reordered(units: int, elements: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    slices = torch.randn(units, elements, generator=generator)
    order = torch.randperm(units, generator=generator)
    for name, criterion in CRITERIA.items():
        if not criterion.seeded:
            assert torch.allclose(criterion.score(slices)[order], criterion.score(slices[order]), rtol=1e-5), name


def test_aligned_takes_the_slices_of_any_axis() -> None:
    weight = torch.arange(6.0).view(2, 3)
    units, slices = aligned(weight, 1, torch.tensor([2, 0, 1]))
    assert units.tolist() == [0, 1, 2]
    assert slices.tolist() == [[1, 4], [2, 5], [0, 3]]


def test_aligned_joins_the_slices_of_one_unit() -> None:
    # a head of two rows, and a row that belongs to another group
    weight = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])
    units, slices = aligned(weight, 0, torch.tensor([4, 6, -1, 4, 6]))
    assert units.tolist() == [4, 6]
    assert slices.tolist() == [[1, 4], [2, 5]]


def test_aligned_fills_uneven_units_with_zeros() -> None:
    units, slices = aligned(torch.tensor([1.0, 2.0, 3.0]), 0, torch.tensor([0, 0, 1]))
    assert units.tolist() == [0, 1]
    assert slices.tolist() == [[1, 2], [3, 0]]


def test_aligned_scores_half_precision_in_single() -> None:
    _, slices = aligned(torch.ones(2, 3, dtype=torch.bfloat16), 0, torch.tensor([0, 1]))
    assert slices.dtype == torch.float32
