"""Both oracle properties on every built-in network, cut at random to half of every prunable group."""

from __future__ import annotations

import random
import time

import oracle
import pytest
import torch

from prunecli import models
from prunecli.surgery import Plan, trace, verify


def _inputs(name: str) -> tuple[torch.Tensor]:
    shape = models.input_shape(name, {})
    side = min(shape[1], 64)  # large images show nothing that small ones do not
    return (torch.randn(2, shape[0], side, side, generator=torch.Generator().manual_seed(0)),)


@pytest.mark.parametrize("name", models.names())
def test_cut_equals_masked(name: str) -> None:
    structure = oracle.check_masking(models.build(name, {}), _inputs(name))
    assert len(structure.frozen) == 1  # the classifier


@pytest.mark.parametrize("name", models.names())
def test_dead_units_change_nothing(name: str) -> None:
    oracle.check_dead(models.build(name, {}), _inputs(name), seed=1)


@pytest.mark.parametrize("name", ["lenet5-branches", "vgg11", "resnet20", "preresnet56", "densenet40", "wrn-16-8"])
@pytest.mark.parametrize("seed", [0, 1])
def test_any_plan_can_be_cut(name: str, seed: int) -> None:
    """All units of a group but one may go, or one alone, in one block and not in the next."""
    network, draw = models.build(name, {}), random.Random(seed)
    structure = trace(network, *_inputs(name))
    kept = {}
    for group in structure.groups:
        if group.prunable:
            widths = [1, 1, group.units - 1, draw.randint(1, group.units), group.units]
            kept[group.key] = sorted(draw.sample(range(group.units), draw.choice(widths)))
    verify(network, structure, Plan(kept), *_inputs(name))
    oracle.check_masking(network, _inputs(name), Plan(kept), seed=seed)


def test_option_a_shortcuts_leave_the_padded_channels() -> None:
    """The first stage's 16 channels live on in every later stage; places where the code pads zeros stay."""
    structure = trace(models.build("resnet20", {}), *_inputs("resnet20"))
    group = structure.group_of("conv1")
    (last,) = (m for m in group.members if m.tensor == "layer3.2.conv2.weight" and m.axis == 0)
    assert group.units == 16
    assert last.unit.tolist() == list(range(16)) + [-1] * 48


def test_units_of_densenet_belong_to_one_layer_each() -> None:
    structure = trace(models.build("densenet40", {}), *_inputs("densenet40"))
    assert all(len(group.producers) == 1 for group in structure.groups)


def test_tracing_is_fast() -> None:
    network, inputs = models.build("resnet56", {}), _inputs("resnet56")
    trace(network, *inputs)
    begin = time.process_time()
    trace(network, *inputs)
    assert time.process_time() - begin < 1.0


def test_shapes_of_many_plans_are_cheap() -> None:
    structure = trace(models.build("resnet56", {}), *_inputs("resnet56"))
    plan = oracle.half(structure)
    structure.shapes(plan)
    begin = time.process_time()
    for _ in range(100):
        structure.shapes(plan)
    assert time.process_time() - begin < 1.0
