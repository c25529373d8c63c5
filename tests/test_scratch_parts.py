"""What scratch runs are made of: budgets, widths, masks and first weights, against closed forms and hand counts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prunecli import models
from prunecli.errors import TargetError, UsageError
from prunecli.measure import cost, totals
from prunecli.retraining import sparsity, widths
from prunecli.retraining.budget import budget_epochs, budget_schedule, macs_ratio
from prunecli.retraining.shape import first_units
from prunecli.retraining.weights import fit_scale, layers, sparse
from prunecli.sidecar import Cost, Mask, Schedule
from prunecli.surgery import Plan, apply, trace
from prunecli.training.schedule import factor

# Budgets


@pytest.mark.parametrize(
    "budget, epochs, ratio, expected",
    [
        ("E", 160, 3.0, 160),
        ("B", 160, 1.52, 243),
        ("B", 160, 1.0, 160),
        ("B", 10, 1.1, 11),  # 10 * 1.1 is 11.000000000000002, 100 * 1.15 is 114.99999999999999
        ("B", 100, 1.15, 115),
        ("B-imagenet", 90, 1.3, 117),
        ("B-imagenet", 90, 1.99, 179),
        ("B-imagenet", 90, 2.0, 180),
        ("B-imagenet", 90, 7.0, 180),
        ("B-imagenet", 20, 1.5, 135),  # counts from 90 whatever the recipe
    ],
)
def test_epochs_of_a_budget(budget: str, epochs: int, ratio: float, expected: int) -> None:
    assert budget_epochs(budget, epochs, ratio) == expected


def test_milestones_keep_their_fractions_of_the_run() -> None:
    schedule = budget_schedule("B", Schedule(kind="multistep", milestones=[80, 120]), 160, 243)
    assert schedule.milestones == [int(0.5 * 243), int(0.75 * 243)]
    assert budget_schedule("B", Schedule(kind="step", step_size=30), 90, 135).step_size == 45
    assert budget_schedule("E", Schedule(kind="cosine", warmup=5), 160, 160) == Schedule(kind="cosine", warmup=5)


@pytest.mark.parametrize("epochs, step", [(180, 60), (117, 39), (179, 59)])
def test_the_imagenet_budget_drops_the_rate_by_thirds(epochs: int, step: int) -> None:
    schedule = budget_schedule("B-imagenet", Schedule(kind="cosine"), 90, epochs)
    assert schedule == Schedule(kind="step", step_size=step, gamma=0.1)


@given(
    kind=st.sampled_from(["constant", "cosine", "exponential", "multistep"]),
    times=st.integers(2, 5),
    place=st.integers(1, 39),
)
def test_a_stretched_curve_is_the_same_curve(kind: str, times: int, place: int) -> None:
    schedule = Schedule(kind=kind, gamma=0.9, milestones=[10, 30] if kind == "multistep" else [], warmup=2)  # type: ignore[arg-type]
    longer = budget_schedule("B", schedule, 40, 40 * times)
    assert factor(longer, 40 * times, place * times) == pytest.approx(factor(schedule, 40, place))


def test_the_ratio_of_macs_counts_convolutions_alone_under_masks() -> None:
    shapes = {"conv.weight": (4, 2, 3, 3), "fc.weight": (10, 4)}
    small = {"conv.weight": (2, 2, 3, 3), "fc.weight": (10, 2)}
    measured = Cost(input=[2, 8, 8], positions={"conv.weight": 64, "fc.weight": 1})
    large = totals(measured, shapes, {})
    assert macs_ratio(large, totals(measured, small, {})) == (72 * 64 + 40) / (36 * 64 + 20)
    masks = {"conv.weight": Mask(shape=[4, 2, 3, 3], bits=b"\xff" * 3 + b"\0" * 6)}  # 24 of 72
    assert macs_ratio(large, totals(measured, shapes, masks)) == 3.0
    only_linear = {"fc.weight": Mask(shape=[10, 4], bits=b"\xff" + b"\0" * 4)}
    assert macs_ratio(large, totals(measured, shapes, only_linear)) == 1.0


# Widths


def test_widths_of_the_thin_network_of_the_paper() -> None:
    assert widths.thin({"a": 128, "b": 256, "c": 512}, 0.15) == {"a": 49, "b": 99, "c": 198}
    assert widths.thin({"a": 100}, 0.25) == {"a": 50}
    assert widths.thin({"a": 2}, 0.01) == {"a": 1}


def test_the_thin_network_of_the_paper_has_its_parameters() -> None:
    network = models.build("wrn-16-8", {"num_classes": 100})
    example = torch.zeros(1, 3, 32, 32)
    structure = trace(network, example)
    chosen = widths.thin({g.key: g.units for g in structure.groups if g.prunable}, 0.15)
    assert sorted({*chosen.values()}) == [6, 49, 99, 198]
    shapes = structure.shapes(first_units(chosen))
    params = totals(cost(network, example), shapes, {}).params
    # stem 6; blocks 2 per stage, convolutions with bias, a projection in the first of each stage; linear layer
    expected, inputs = 27 * 6 + 6, 6
    for width in (49, 99, 198):
        for block in range(2):
            expected += 2 * inputs + (9 * inputs + 1) * width + 2 * width + (9 * width + 1) * width
            expected += (inputs + 1) * width if block == 0 else 0
            inputs = width
    expected += 2 * 198 + 198 * 100 + 100
    assert params == expected == 1_660_010  # "1.66M"


def test_uniform_takes_the_largest_equal_share_that_fits() -> None:
    sizes = {"a": 4, "b": 8}
    assert widths.uniform(sizes, lambda w: sum(w.values()), 6) == {"a": 2, "b": 4}
    assert widths.uniform(sizes, lambda w: sum(w.values()), 7) == {"a": 2, "b": 5}
    assert widths.uniform(sizes, lambda w: sum(w.values()), 100) == sizes
    assert widths.uniform(sizes, lambda w: sum(w.values()), 2) == {"a": 1, "b": 1}
    assert widths.uniform({}, lambda w: 5.0, 5) == {}
    with pytest.raises(TargetError, match="no network is as small as 1"):
        widths.uniform(sizes, lambda w: sum(w.values()), 1)


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), part=st.floats(0, 1))
def test_uniform_is_never_larger_and_cannot_grow(sizes: list[int], part: float) -> None:
    layer = {str(i): size for i, size in enumerate(sizes)}
    target = len(sizes) + part * (sum(sizes) - len(sizes))
    chosen = widths.uniform(layer, lambda w: sum(w.values()), target)
    assert sum(chosen.values()) <= target
    share = min((chosen[name] + 1) / size for name, size in layer.items())  # the next share that adds a unit anywhere
    assert share > 1 or sum(widths.share_of(layer, share).values()) > target


def test_stages_are_layers_of_equal_maps() -> None:
    maps = {"a": 1024, "b": 1024, "c": 256, "d": 1024, "e": 64, "f": None, "g": None}
    linear = widths.LINEAR
    assert widths.number_stages(maps) == {"a": 0, "b": 0, "c": 1, "d": 0, "e": 2, "f": linear, "g": linear}


def test_guided_widths_are_the_mean_of_the_stage() -> None:
    sizes = {"a": 64, "b": 64, "c": 128, "fc": 100}
    stages = {"a": 0, "b": 0, "c": 1, "fc": widths.LINEAR}
    shares = widths.stage_shares(sizes, {"a": 20, "b": 41, "c": 128, "fc": 10}, stages)
    assert shares == {0: 30.5 / 64, 1: 1.0, widths.LINEAR: 0.1}
    assert widths.guided(sizes, stages, shares) == {"a": 31, "b": 31, "c": 128, "fc": 10}  # 30.5 rounds up
    assert widths.guided(sizes, stages, {0: 0.0, 1: 0.5}) == {"a": 1, "b": 1, "c": 64, "fc": 100}


def test_transferred_fractions_of_the_paper_on_vgg19() -> None:
    fractions = dict(enumerate([0.836, 1, 0.947, 0.258, 0.132]))
    stages = enumerate([(2, 64), (2, 128), (4, 256), (4, 512), (4, 512)])
    sizes = {f"{stage}.{i}": width for stage, (layers, width) in stages for i in range(layers)}
    chosen = widths.guided(sizes, {name: int(name[0]) for name in sizes}, fractions)
    assert list(chosen.values()) == [54] * 2 + [128] * 2 + [242] * 4 + [132] * 4 + [68] * 4


# Masks


def random_masks(seed: int, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) < 0.3 for name, shape in shapes.items()}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_uniform_sparsification_keeps_the_count_and_spreads_it_evenly() -> None:
    dense, empty = torch.ones(30, 20, 3, 3, dtype=torch.bool), torch.zeros(40, 30, 3, 3, dtype=torch.bool)
    masks = {"a": dense, "b": empty}
    share = sparsity.shares(masks, sparsity.one_pool)
    assert share == {None: 5400 / 16200}
    new = sparsity.draw(masks, sparsity.one_pool, share, generator())
    assert sum(int(mask.sum()) for mask in new.values()) == 5400
    for mask in new.values():
        p, n = 1 / 3, mask.numel()
        assert abs(int(mask.sum()) - n * p) < 5 * math.sqrt(n * p * (1 - p))
    assert new["a"].shape == dense.shape


def test_guided_sparsification_keeps_the_mean_of_each_kernel_position_in_a_stage() -> None:
    masks = random_masks(1, a=(16, 8, 3, 3), b=(16, 16, 3, 3), c=(32, 16, 1, 1), fc=(10, 32))
    masks["a"][..., 1, 1] = True  # the centre of kernels survives
    pool = sparsity.by_stage({"a": 0, "b": 0, "c": 0, "fc": widths.LINEAR})
    new = sparsity.draw(masks, pool, sparsity.shares(masks, pool), generator())
    for y in range(3):
        for x in range(3):
            before, after = (int(m["a"][..., y, x].sum() + m["b"][..., y, x].sum()) for m in (masks, new))
            assert before == after
    for name in ("c", "fc"):
        assert int(new[name].sum()) == int(masks[name].sum())
    centre = sparsity.shares(masks, pool)[0, (3, 3), 4]
    assert abs(new["b"][..., 1, 1].float().mean().item() - centre) < 5 * math.sqrt(centre * (1 - centre) / 256)


def test_shares_transfer_to_other_sizes_and_unknown_pools_are_named() -> None:
    guide, masks = random_masks(1, x=(8, 8, 3, 3)), random_masks(2, y=(32, 16, 3, 3))
    share = sparsity.shares(guide, sparsity.by_stage({"x": 0}))
    new = sparsity.draw(masks, sparsity.by_stage({"y": 0}), share, generator())
    for position, kept in enumerate(new["y"].reshape(512, 9).sum(0).tolist()):
        assert kept == round(share[0, (3, 3), position] * 512)
    with pytest.raises(UsageError, match="nothing there is like y"):
        sparsity.draw(masks, sparsity.by_stage({"y": 1}), share, generator())


@given(seed=st.integers(0, 1000), share=st.floats(0.0, 1.0))
def test_no_layer_is_left_empty_while_another_can_give(seed: int, share: float) -> None:
    masks = {"small": torch.ones(2, 1, dtype=torch.bool), "large": torch.ones(30, 5, dtype=torch.bool)}
    new = sparsity.draw(masks, sparsity.one_pool, {None: share}, generator(seed))
    count = sum(int(mask.sum()) for mask in new.values())
    assert count == round(share * 152)
    assert all(mask.any() for mask in new.values()) or count < 2


def test_masks_are_a_function_of_the_seed() -> None:
    masks = random_masks(1, a=(16, 8, 3, 3))
    share = sparsity.shares(masks, sparsity.one_pool)
    first, second, third = (sparsity.draw(masks, sparsity.one_pool, share, generator(s))["a"] for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


# First weights


def test_sparse_initialisation_has_the_variance_of_what_the_mask_keeps() -> None:
    network = nn.Sequential(nn.Conv2d(32, 64, 3), nn.Linear(200, 100), nn.Conv2d(32, 64, 3))
    masks = random_masks(1, **{"0.weight": (64, 32, 3, 3), "1.weight": (100, 200)})
    untouched = network[2].weight.detach().clone()
    for scaled in (True, False):
        sparse(network, masks, scaled, generator())
        for name, inputs in (("0.weight", 32), ("1.weight", 200)):
            weight = network.get_parameter(name)
            n = (int(masks[name].sum()) if scaled else masks[name].numel()) / inputs
            assert weight.std().item() == pytest.approx(math.sqrt(2 / n), rel=0.03)
            assert abs(weight.mean().item()) < 5 * weight.std().item() / math.sqrt(weight.numel())
    assert torch.equal(network[2].weight, untouched)


def test_sparse_initialisation_of_grouped_convolutions_counts_all_input_channels() -> None:
    network = nn.Sequential(nn.Conv2d(512, 512, 3, groups=512))
    sparse(network, {"0.weight": torch.ones(512, 1, 3, 3, dtype=torch.bool)}, True, generator())
    assert network[0].weight.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.06)


def cut(network: nn.Module, example: Tensor, share: dict[str, float]) -> None:
    """Draw, cut and scale."""
    drawn = {name: module.weight.detach() for name, module in layers(network).items()}
    structure = trace(network, example)
    chosen = {g.key: int(g.units * share.get(g.key, 1.0)) for g in structure.groups if g.prunable}
    apply(network, structure, first_units(chosen))
    fit_scale(network, drawn)


def test_fan_out_initialisation_fits_the_smaller_shape() -> None:
    torch.manual_seed(0)
    network = models.build("resnet20", {"width": 32})
    cut(network, torch.zeros(1, 3, 32, 32), {"layer2.0.conv1": 0.25, "layer3.0.conv1": 0.5})
    for name in ("layer2.0.conv1", "layer2.0.conv2", "layer3.0.conv1", "layer3.0.conv2"):
        weight = network.get_parameter(name + ".weight")
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * weight.shape[0])), rel=0.05)


def test_pytorchs_default_initialisation_fits_the_smaller_shape() -> None:
    torch.manual_seed(0)
    network = models.build("lenet5", {})
    cut(network, torch.zeros(1, 1, 32, 32), {"conv2": 0.5, "conv3": 0.5, "fc1": 0.5})
    for name, module in layers(network).items():
        weight, bound = module.weight, 1 / math.sqrt(module.weight[0].numel())
        assert weight.abs().max().item() <= bound * 1.0001, name
        assert weight.abs().max().item() > 0.9 * bound, name
        assert module.bias is not None
        assert module.bias.abs().max().item() <= bound * 1.0001, name


def test_layers_that_were_not_cut_keep_their_draw() -> None:
    torch.manual_seed(0)
    network = models.build("lenet5", {})
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    apply(network, trace(network, torch.zeros(1, 1, 32, 32)), Plan())
    fit_scale(network, {name: module.weight.detach() for name, module in layers(network).items()})
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
