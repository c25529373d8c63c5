"""The learning rate as a function of the position: closed forms, and the curve of a stretched run."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.sidecar import Schedule, Training
from prunecli.training.recipe import last_rate
from prunecli.training.schedule import factor, stretched


def test_multistep_drops_exactly_at_the_milestones() -> None:
    schedule = Schedule(kind="multistep", milestones=[80, 120], gamma=0.1)
    assert [factor(schedule, 160, e) for e in (0, 79, 80, 119, 120, 159)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_rates_change_between_epochs_and_not_within() -> None:
    schedule = Schedule(kind="step", step_size=30, gamma=0.5)
    assert factor(schedule, 90, 29.999) == 1.0
    assert factor(schedule, 90, 30.5) == factor(schedule, 90, 30) == 0.5


def test_exponential_multiplies_every_epoch() -> None:
    assert factor(Schedule(kind="exponential", gamma=0.99), 400, 100) == pytest.approx(0.99**100)


@pytest.mark.parametrize(("position", "expected"), [(0, 1.0), (5, 0.5), (10, 0.0), (12, 0.0)])
def test_cosine_goes_from_one_to_its_minimum_and_stays(position: float, expected: float) -> None:
    assert factor(Schedule(kind="cosine"), 10, position) == pytest.approx(expected, abs=1e-12)


def test_cosine_restarts_each_period() -> None:
    schedule = Schedule(kind="cosine", period=40, min_factor=0.1)
    assert [factor(schedule, 120, e) for e in (0, 40, 80)] == [1.0, 1.0, 1.0]
    assert factor(schedule, 120, 20) == factor(schedule, 120, 60) == pytest.approx(0.55)


def test_warm_up_is_linear_and_ends_at_the_base_rate() -> None:
    schedule = Schedule(kind="constant", warmup=4)
    assert [factor(schedule, 10, e) for e in (1, 2, 3, 4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])


@given(
    kind=st.sampled_from(["constant", "step", "multistep", "cosine"]),
    ratio=st.integers(2, 6),
    epoch=st.integers(0, 99),
)
def test_a_stretched_run_is_the_same_curve(kind: str, ratio: int, epoch: int) -> None:
    schedule = Schedule(kind=kind, milestones=[50, 75], step_size=30)  # type: ignore[arg-type]
    assert factor(stretched(schedule, ratio), 100 * ratio, epoch * ratio) == pytest.approx(
        factor(schedule, 100, epoch), abs=1e-12
    )


def test_a_stretched_exponential_ends_at_the_same_rate() -> None:
    schedule = Schedule(kind="exponential", gamma=0.9)
    assert math.isclose(factor(stretched(schedule, 3), 30, 30), factor(schedule, 10, 10))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(kind="multistep", milestones=[80, 120], gamma=0.1), 0.001),
        (Schedule(kind="constant"), 0.1),
        (Schedule(kind="cosine"), 0.01),
    ],
)
def test_the_last_rate_is_the_last_epochs_and_a_tenth_after_a_cosine(schedule: Schedule, expected: float) -> None:
    run = Training(epochs=160, epoch=160, batch_size=64, seed=0, lr=0.1, schedule=schedule)
    assert last_rate(run) == pytest.approx(expected)
