"""Sparse structure selection: gradient and proximal step of the factors, what they leave, the cut without a loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gradual import check_resumed, live, train
from torch import nn
from torch.func import functional_call

import prunecli
from prunecli.errors import TargetError, UsageError
from prunecli.training import Run

SMALL: dict[str, Any] = {"arch": "resnet20", "arch_arg": ("width=4", "in_channels=1"), "image_size": 8}
IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
NORM = "layer2.1.bn1"


def at_work(tmp_path: Path, **arguments: Any) -> Run:
    """A run whose factors, scales and shifts are all different."""
    run = live(tmp_path, "sss", arguments, {}, **SMALL)
    draw = torch.Generator().manual_seed(0)
    for tensors in ({n: p.data for n, p in run.network.named_parameters() if p.ndim == 1}, run.hook.tensors["lambda"]):
        for tensor in tensors.values():
            tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.2)
    return run


def logits(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(IMAGES)


def test_gradients_are_those_of_a_factor_on_the_output_of_each_batch_norm(tmp_path: Path) -> None:
    run = at_work(tmp_path)
    network, factors = run.network.eval(), run.hook.tensors["lambda"]
    leaves = {name: factor.clone().requires_grad_() for name, factor in factors.items()}
    weights = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    owner = {name: name.rpartition(".")[0] + ".weight" for name in weights}
    scaled = {name: weights[name] * leaves[owner[name]] for name in weights if owner[name] in leaves}
    functional_call(network, weights | scaled, (IMAGES,)).square().sum().backward()
    run.hook.before_forward(run)
    network(IMAGES).square().sum().backward()
    run.hook.after_backward(run)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, weights[name]), name
        assert torch.allclose(parameter.grad, weights[name].grad, rtol=1e-4, atol=1e-4), name
    run.optimizer.param_groups[0] |= {"lr": 1.0, "momentum": 0.0}
    run.hook.settings = type(run.hook.settings)(gamma=1e-9, clip=False)
    before = {name: factor.clone() for name, factor in factors.items()}
    run.hook.after_step(run)  # a step of rate 1 without penalty is the gradient
    for name, leaf in leaves.items():
        assert torch.allclose(before[name] - factors[name], leaf.grad, rtol=1e-4, atol=1e-4), name


@pytest.mark.parametrize("clip", [True, False])
def test_the_proximal_step_with_momentum(tmp_path: Path, clip: bool) -> None:
    run = at_work(tmp_path, gamma=0.5, clip=clip)
    run.optimizer.param_groups[0] |= {"lr": 0.1, "momentum": 0.9}
    for parameter in run.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    norm = run.network.get_submodule(NORM)
    norm.weight.data[:3], norm.bias.data[:3] = 1.0, 0.0
    norm.weight.grad[:3] = torch.tensor([2.0, 0.0, 0.0])
    factor, velocity = (run.hook.tensors[kind][f"{NORM}.weight"] for kind in ("lambda", "velocity"))
    factor[:3], velocity[:3] = torch.tensor([1.0, 0.03, 0.03]), torch.tensor([0.5, 0.0, -0.3])
    run.hook.before_forward(run)
    run.hook.after_backward(run)
    run.hook.after_step(run)
    # z = S_0.05(1 - 0.2) = 0.75, v = 0.45 + 0.75 - 1 = 0.2, lambda = 0.75 + 0.9 v; the others: z = 0
    expected = [0.93, *([0.0, 0.0] if clip else [-0.027, -0.27])]
    assert velocity[:3].tolist() == pytest.approx([0.2, -0.03, -0.3])
    assert factor[:3].tolist() == pytest.approx(expected)


def test_the_network_is_scored_with_its_factors_and_trains_on_without(tmp_path: Path) -> None:
    run = at_work(tmp_path)
    norm, factor = run.network.get_submodule(NORM), run.hook.tensors["lambda"][f"{NORM}.weight"]
    before = norm.weight.detach().clone()
    with run.hook.evaluating(run):
        assert torch.equal(norm.weight, before * factor)
    assert torch.equal(norm.weight, before)


def test_channels_of_factor_zero_are_cut_without_a_difference(tmp_path: Path) -> None:
    run = at_work(tmp_path)
    run.hook.tensors["lambda"][f"{NORM}.weight"][[1, 4, 6]] = 0
    run.hook.tensors["lambda"]["layer3.0.bn1.weight"][:] = 0
    with run.hook.evaluating(run):
        before = logits(run.network)
    run.hook.end(run)
    assert run.network.get_submodule(NORM).num_features == 5
    assert run.network.layer3[0].conv1.out_channels == 1
    assert run.network.layer3[1].conv1.out_channels == 16
    assert torch.allclose(logits(run.network), before, atol=1e-4)


def test_a_run_ends_smaller_with_the_same_score_and_goes_on(tmp_path: Path) -> None:
    recipe: dict[str, Any] = {"schedule": "constant", "only": ("layer3.*.conv1",)}
    cut = train(tmp_path, **SMALL, **recipe, method="sss", method_arg=("gamma=2",))
    log = cut.sidecar.metrics.curve[-1]
    assert log.method["zero"] > 0.5
    assert cut.sidecar.metrics.last
    assert cut.sidecar.metrics.last.values == pytest.approx(log.score, rel=1e-4)
    assert cut.sidecar.surgery.axes
    again = str(tmp_path / "again.safetensors")
    options = prunecli.FinetuneOptions(checkpoint=str(tmp_path / "x.safetensors"), epochs=1, output=again, threads=1)
    assert prunecli.finetune(options).checkpoint.sidecar.surgery == cut.sidecar.surgery


@pytest.mark.parametrize("steps", [3, 8])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, steps: int) -> None:
    check_resumed(tmp_path, steps, **SMALL, method="sss", method_arg=("gamma=2",))


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"arch": "lenet5", "arch_arg": (), "image_size": None}, TargetError, "batch norm"),
        ({"sparsity": 0.5}, UsageError, "--sparsity"),
        ({"method_arg": ("gamma=-1",)}, UsageError, "gamma"),
        ({"method_arg": ("momentum=1",)}, UsageError, "momentum"),
        ({"only": ("nothing",)}, UsageError, "nothing"),
    ],
)
def test_what_cannot_be_is_refused_before_training(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as error:
        train(tmp_path, **(SMALL | {"method": "sss"} | options))
    assert words in error.value.message + error.value.hint
    assert not list(tmp_path.iterdir())
