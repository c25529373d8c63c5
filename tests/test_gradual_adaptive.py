"""Adaptive sparsity: bounds and gradients in closed form and by autograd, what a run sees, saves and leaves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from gradual import KillAt, Killed, check_resumed, finetune, gradients, live, prune, train
from torch import Tensor

import prunecli
from prunecli import checkpoint as checkpoints
from prunecli.checkpoint import unpack_mask
from prunecli.errors import TargetError, UsageError
from prunecli.methods.gradual.adaptive_setup import parse_limits
from prunecli.methods.gradual.bounds import Term, bound_at, remaining, search
from prunecli.options.train import TrainOptions
from prunecli.training import Run

METHOD = "adaptive-sparsity"
LAYERS = ("conv2", "conv3", "fc1")  # of LeNet-5, those of 1000 weights and more


def dense(run: Run) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in run.network.named_parameters()}


def test_a_bound_is_where_the_gaussian_has_the_share() -> None:
    assert bound_at(0.6827) == pytest.approx(1, abs=1e-4)
    assert bound_at(0.9545) == pytest.approx(2, abs=1e-4)
    assert (bound_at(0), bound_at(1)) == (0, 5)
    assert float(remaining(torch.tensor([1.0]))) == pytest.approx(0.3173, abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.85, 0.95, 0.999])
def test_the_search_finds_the_share_of_any_distribution(share: float) -> None:
    magnitudes = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) ** 3
    assert float((magnitudes <= search(magnitudes, share)).float().mean()) == pytest.approx(share, abs=1e-3)


def test_the_search_ends_where_equal_magnitudes_stand_in_the_way() -> None:
    magnitudes = torch.tensor([0.25] * 10 + [1.0] * 10)
    assert search(magnitudes, 0.7) == pytest.approx(1)
    assert search(magnitudes, 0.2) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("budget", "one_sided", "value", "factor"),
    [(None, False, 8 * 0.45, 8), (0.2, False, 8 * 0.25**2, 8 * 2 * 0.25), (0.2, True, 8 * 0.25, 8), (0.5, True, 0, 0)],
)
def test_the_sparsity_loss_and_equation_18(budget: float | None, one_sided: bool, value: float, factor: float) -> None:
    bounds = torch.tensor([bound_at(0.5), bound_at(0.9)], dtype=torch.float64, requires_grad=True)
    coefficients = torch.tensor([0.5, 0.25], dtype=torch.float64)
    term = Term(coefficients, strength=8, rest=0.175, budget=budget, one_sided=one_sided)  # D = 0.25 + 0.025 + 0.175
    loss = term.value(remaining(bounds))
    assert loss.item() == pytest.approx(value)
    (by_autograd,) = torch.autograd.grad(loss, bounds)
    formula = [
        -factor * c * math.sqrt(2 / math.pi) * math.exp(-b * b / 2)
        for c, b in zip((0.5, 0.25), bounds.tolist(), strict=True)
    ]
    with torch.no_grad():
        gradient = term.gradient(bounds, remaining(bounds))
    assert gradient.tolist() == pytest.approx(formula, abs=1e-12)
    assert gradient.tolist() == pytest.approx(by_autograd.tolist(), abs=1e-12)


class HardShrink(torch.autograd.Function):
    """T: zero below 1, identity backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * (x.abs() >= 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


@pytest.mark.parametrize("centre", [True, False])
def test_what_the_network_sees_and_the_step_of_the_bounds(tmp_path: Path, centre: bool) -> None:
    settings = {"strength": 2.0, "centre": centre, "density": "gaussian"}
    run = live(tmp_path, METHOD, settings, {"sparsity": 0.5}, momentum=0.5)
    before, start = dense(run), bound_at(0.3)
    run.hook.before_forward(run)
    seen = dense(run)
    gradients(run)
    generator = torch.Generator().manual_seed(1)
    loss, bounds, weights = torch.zeros(()), [], []
    for layer in LAYERS:
        w = (before[f"{layer}.weight"] - centre * before[f"{layer}.weight"].mean()).requires_grad_()
        b = torch.tensor(start, requires_grad=True)
        threshold = b * w.detach().std() + 1e-6
        sparse = threshold * HardShrink.apply(w / threshold)
        assert torch.allclose(seen[f"{layer}.weight"], sparse, atol=1e-6)
        assert 0.1 < float((seen[f"{layer}.weight"] == 0).float().mean()) < 0.5
        direction = torch.randn(w.shape, generator=generator)
        run.network.get_submodule(layer).weight.grad.copy_(direction)
        loss = loss + (direction * sparse).sum()
        bounds, weights = [*bounds, b], [*weights, w]
    slopes = torch.stack(torch.autograd.grad(loss, bounds, retain_graph=True))
    run.hook.after_backward(run)
    after = dense(run)
    for layer, w, gradient in zip(LAYERS, weights, torch.autograd.grad(loss, weights), strict=True):
        assert torch.allclose(after[f"{layer}.weight"], w, atol=1e-7)
        assert torch.allclose(run.network.get_submodule(layer).weight.grad, gradient, atol=1e-5), "straight through"
    for name in ("conv1.weight", "fc2.weight", "conv2.bias"):
        assert torch.equal(seen[name], before[name])
        assert torch.equal(after[name], before[name])
    sizes = torch.tensor([float(w.numel()) for w in weights])
    penalty = 2 * 2 * (0.7 - 0.5) * sizes / sizes.sum() * -math.sqrt(2 / math.pi) * math.exp(-(start**2) / 2)
    step = 0.05 * 0.01 * (slopes + penalty)  # the first: momentum is empty
    found = torch.stack([run.hook.tensors["bound"][f"{layer}.weight"] for layer in LAYERS])
    assert torch.allclose(found, start - step, rtol=1e-4)
    held = torch.stack(list(run.hook.tensors["bound_momentum"].values()))
    assert torch.allclose(held, slopes + penalty, rtol=1e-3)


def test_without_the_estimator_removed_weights_get_no_gradient_and_bounds_none_from_the_loss(tmp_path: Path) -> None:
    run = live(tmp_path, METHOD, {"ste": False, "strength": 1e-9}, {"sparsity": 0.5})
    run.hook.before_forward(run)
    seen = dense(run)
    for parameter in run.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    run.hook.after_backward(run)
    for layer in LAYERS:
        gradient = run.network.get_submodule(layer).weight.grad
        assert torch.equal(gradient, (seen[f"{layer}.weight"] != 0).float())
    assert torch.stack(list(run.hook.tensors["bound"].values())).tolist() == pytest.approx([bound_at(0.3)] * 3)


def test_bounds_stay_within_limits_and_5(tmp_path: Path) -> None:
    settings = {"limits": "conv*=0.2..0.4,fc1=0.35..0.6", "strength": 1e6}
    run = live(tmp_path, METHOD, settings, {"max_params": 0.3})
    names = [f"{layer}.weight" for layer in LAYERS]
    spans = [(0.2, 0.4), (0.2, 0.4), (0.35, 0.6)]
    for sign in (1, -1):  # the loss pushes bounds up, then down
        run.hook.terms = [Term(torch.ones(3), sign * 1e6)]
        for _ in range(5):
            run.hook.before_forward(run)
            gradients(run)
            run.hook.after_backward(run)
        found = [float(run.hook.tensors["bound"][name]) for name in names]
        assert found == pytest.approx([bound_at(span[sign == 1]) for span in spans])
    free = live(tmp_path, METHOD, {"strength": 1e6}, {})
    for _ in range(5):
        free.hook.before_forward(free)
        gradients(free)
        free.hook.after_backward(free)
    assert all(float(bound) == 5 for bound in free.hook.tensors["bound"].values())


@pytest.mark.parametrize(
    ("arguments", "given", "c", "target"),
    [
        ({}, {"sparsity": 0.7}, (2400, 48000, 10080), 0.3),
        ({"average": "avg"}, {"sparsity": 0.7}, (1, 1, 1), 0.3),
        ({"average": "macs"}, {"sparsity": 0.7}, (240000, 48000, 10080), 0.3),
        ({"average": "avg"}, {}, (1, 1, 1), None),
    ],
)
def test_the_average_weighs_layers(
    tmp_path: Path, arguments: dict[str, Any], given: dict[str, Any], c: tuple[int, ...], target: float | None
) -> None:
    (term,) = live(tmp_path, METHOD, arguments, given).hook.terms
    assert term.coefficients.tolist() == pytest.approx([part / sum(c) for part in c])
    assert term.budget == (target if target is None else pytest.approx(target))


def test_budgets_count_the_parameters_and_macs_of_the_whole_network(tmp_path: Path) -> None:
    arguments = {"strength": 3.0, "strength_macs": 4.0, "one_sided": True}
    run = live(tmp_path, METHOD, arguments, {"max_params": 0.4, "max_macs": 0.6})
    params, macs = run.hook.terms
    assert (params.budget, params.strength, macs.budget, macs.strength) == (0.4, 3, 0.6, 4)
    run.hook.end(run)
    left = run.hook._left([run.masks[f"{layer}.weight"] for layer in LAYERS]) / run.hook.sizes
    sums = run.sums()
    assert float(params.over(left)) + 0.4 == pytest.approx(sums["params"] / 61706)
    assert float(macs.over(left)) + 0.6 == pytest.approx(sums["macs"] / 416520)


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_searched_bound_leaves_the_share_of_each_layer_and_removal_changes_nothing(
    tmp_path: Path, share: float
) -> None:
    sidecar = train(tmp_path, method=METHOD, sparsity=share, method_arg=("mode=bs",)).sidecar
    assert list(sidecar.masks) == [f"{layer}.weight" for layer in LAYERS]
    for mask in sidecar.masks.values():
        assert 1 - mask.kept / math.prod(mask.shape) == pytest.approx(share, abs=1e-3)
    log = sidecar.metrics.curve[-1]
    assert log.score == sidecar.metrics.last.values
    assert log.method["density"] == pytest.approx(1 - share, abs=1e-3)
    assert log.method["params"] == sum(mask.kept for mask in sidecar.masks.values()) + 61706 - 60480
    assert {f"bound/{layer}" for layer in LAYERS} < log.method.keys()


def test_learned_bounds_attain_a_budget_and_the_whole_network_fits_it(tmp_path: Path) -> None:
    options = {"method_arg": ("strength=50", "bound_rate=0.1"), "epochs": 6, "batch_size": 64}
    found = train(tmp_path, method=METHOD, max_params="30%", **options)
    log = found.sidecar.metrics.curve[-1].method
    assert log["params"] / 61706 == pytest.approx(0.3, abs=0.01)
    assert log["penalty"] < 50 * 0.01**2
    assert found.sidecar.metrics.last.values["top1"] > 0.5


@pytest.mark.parametrize(
    ("steps", "arguments"),
    [(2, ()), (9, ("density=gaussian", "ste=false")), (8, ("mode=bs",)), (4, ("mode=ga", "centre=false"))],
)
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, steps: int, arguments: tuple[str, ...]) -> None:
    check_resumed(tmp_path, steps, method=METHOD, sparsity=0.8, method_arg=arguments)


def test_a_partial_save_has_the_dense_weights(tmp_path: Path) -> None:
    options = TrainOptions(
        arch="lenet5", data="digits", epochs=2, batch_size=256, lr=0.05, threads=1, save_every=1,
        method=METHOD, sparsity=0.5, output=str(tmp_path / "x.safetensors"),
    )  # fmt: skip
    with pytest.raises(Killed):
        prunecli.train(options, KillAt(3))
    saved = checkpoints.load(tmp_path / "x.partial.safetensors")
    assert bool(saved.weights["conv3.weight"].all())
    assert not saved.sidecar.masks
    assert saved.sidecar.training.method.tensors["bound"].keys() == {f"{layer}.weight" for layer in LAYERS}


def test_what_was_masked_before_stays_masked_and_does_not_count(tmp_path: Path) -> None:
    train(tmp_path)
    first = prune(tmp_path / "x.safetensors", method="magnitude", sparsity=0.5, epochs=None, batch_size=None, lr=None)
    options = {"method": METHOD, "sparsity": 0.4, "method_arg": ("mode=bs", "min_weights=500")}
    second = prune(tmp_path / "pruned.safetensors", output=str(tmp_path / "second.safetensors"), **options)
    for name in ("conv2.weight", "conv3.weight", "fc1.weight", "fc2.weight"):
        old, new = (unpack_mask(c.sidecar.masks[name]) for c in (first, second))
        assert not bool((new & ~old).any()), name
        assert int(new.sum()) / int(old.sum()) == pytest.approx(0.6, abs=2e-3), name
    assert torch.equal(*(unpack_mask(c.sidecar.masks["conv1.weight"]) for c in (first, second)))


def test_tables_fix_shares_and_small_and_last_layers_may_be_chosen(tmp_path: Path) -> None:
    run = live(tmp_path, METHOD, {"mode": "ga", "min_weights": 1}, {"ratios": {"conv*": 0.3, "fc2": 0.2}})
    run.hook.before_forward(run)
    zeros = {name: float((p == 0).float().mean()) for name, p in run.network.named_parameters() if p.ndim > 1}
    shares = [bound_at(s) / math.sqrt(3) for s in (0.3, 0.3, 0.3, 0.0, 0.2)]  # of uniform weights
    assert list(zeros.values()) == pytest.approx(shares, abs=0.06)
    chosen = live(tmp_path, METHOD, {"classifier": False, "min_weights": 1}, {}).hook.weights
    assert list(chosen) == [f"{layer}.weight" for layer in ("conv1", "conv2", "conv3", "fc1")]


def test_limits_are_read() -> None:
    assert parse_limits("conv*=0.2..0.6, fc=..0.9,a.b=0.1..") == {"conv*": (0.2, 0.6), "fc": (0, 0.9), "a.b": (0.1, 1)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method_arg": ("mode=ga",)}, "standard deviations: they are not Gaussian"),
        ({"method_arg": ("mode=search",), "sparsity": 0.5}, "mode"),
        ({"method_arg": ("mode=bs",), "sparsity": None}, "--sparsity or --ratios"),
        ({"method_arg": ("mode=bs",), "max_macs": "50%"}, "--max-macs needs learned bounds"),
        ({"method_arg": ("mode=bs", "limits=conv*=0.2..0.5")}, "limits needs learned bounds"),
        ({"ratios": "conv3=0.5", "sparsity": None}, "mode=bs"),
        ({"max_params": "50%"}, "give one"),
        ({"max_params": "1%", "sparsity": None}, "min_weights=1"),
        ({"method_arg": ("limits=conv*=0.5..0.2",)}, "low..high"),
        ({"method_arg": ("limits=conv3=0.5",)}, "low..high"),
        ({"method_arg": ("limits=cnv=0..1",)}, "no layer"),
        ({"method_arg": ("min_weights=1000000",)}, "min_weights=1"),
        ({"method_arg": ("strength=-1",)}, "sparsity loss"),
        ({"sparsity": 1.5}, "sparsity"),
    ],
)
def test_what_cannot_be_is_refused_before_training(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises((UsageError, TargetError)) as error:
        train(tmp_path, **({"method": METHOD, "sparsity": 0.95} | options))
    assert words in error.value.message + error.value.hint
    assert not list(tmp_path.iterdir())


def test_a_trained_network_keeps_its_means_and_what_it_knows(tmp_path: Path) -> None:
    base = train(tmp_path, epochs=8, batch_size=64)
    after = prune(base.path, method="adaptive-sparsity", sparsity=0.5, method_arg=("mode=bs",), epochs=1, lr=0.005)
    assert base.sidecar.metrics.last
    assert after.sidecar.metrics.last
    assert after.sidecar.metrics.last.values["top1"] > base.sidecar.metrics.last.values["top1"] - 0.03


def test_a_weak_one_sided_budget_is_met_since_the_task_pulls_back(tmp_path: Path) -> None:
    arguments = ("strength=0.1", "bound_rate=3", "one_sided=true")
    found = train(tmp_path, method=METHOD, sparsity=0.5, method_arg=arguments, epochs=14, batch_size=64, lr=0.01)
    shares = [1 - log.method["density"] for log in found.sidecar.metrics.curve]
    assert max(shares) > 0.515  # it went past it
    assert shares[-1] == pytest.approx(0.5, abs=0.01)


def test_a_one_sided_budget_that_took_too_much_is_told(tmp_path: Path) -> None:
    run, said = live(tmp_path, METHOD, {"one_sided": True}, {"sparsity": 0.5}), list[str]()
    run.hook.say = said.append
    run.hook.bounds.fill_(1.5)
    run.hook.end(run)
    (warning,) = said
    assert "where 50.0% was asked for: a one-sided budget does not pull back" in warning


def test_the_log_of_a_network_that_was_cut_counts_the_original_one(tmp_path: Path) -> None:
    train(tmp_path)
    prune(tmp_path / "x.safetensors", method="l1", sparsity=0.5, epochs=None, batch_size=None, lr=None)
    arguments = ("mode=bs", "min_weights=1")
    output = str(tmp_path / "second.safetensors")
    second = prune(tmp_path / "pruned.safetensors", output=output, method=METHOD, sparsity=0.5, method_arg=arguments)
    log = second.sidecar.metrics.curve[-1].method
    assert log["sparsity"] == pytest.approx(1 - log["params"] / 61706, abs=1e-6)


def test_a_snapshot_of_the_beginning_goes_on_with_its_means(tmp_path: Path) -> None:
    whole = train(tmp_path, method=METHOD, sparsity=0.5, keep="0")
    rest = finetune(tmp_path / "x.epoch0.safetensors")
    assert all(torch.equal(rest.weights[name], tensor) for name, tensor in whole.weights.items())


def test_a_layer_that_loses_another_share_than_its_limits_is_told(tmp_path: Path) -> None:
    run, said = live(tmp_path, METHOD, {"limits": "conv3=0.5..0.5"}, {"sparsity": 0.5}), list[str]()
    run.hook.say = said.append
    weight = run.network.conv3.weight  # nine tenths are far below the bound, at 0.67 standard deviations
    weight.data.copy_(torch.where(torch.arange(weight.numel()) % 10 == 0, 1.0, 1e-3).view_as(weight))
    weight.data.sub_(weight.data.mean())
    run.hook.end(run)
    assert any("conv3 loses 90.0%, beside its limits of 50.0% to 50.0%" in line for line in said)
