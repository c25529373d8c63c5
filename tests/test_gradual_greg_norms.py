"""GReg with `norms`: scales and shifts behind filters that go vanish with them, and the removal changes nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from gradual import Listening, check_resumed, gradients, live, prune, train
from torch import Tensor, nn

from prunecli.training import Run

RESNET: dict[str, Any] = {"arch": "resnet20", "arch_arg": ("width=4", "in_channels=1"), "image_size": 8}
PROJECTED = RESNET | {"arch_arg": (*RESNET["arch_arg"], "shortcut=projection")}
JOINED: dict[str, Any] = {"arch": f"{__name__}:Joined", "image_size": 8, "trust": (__name__,)}
FAST = {"delta": 0.25, "k_u": 2, "k_s": 3, "norms": True}


def penalty(run: Run) -> dict[str, Tensor]:
    """What the method adds to the gradients of the first step, by parameter."""
    gradients(run)
    run.hook.after_backward(run)
    return {name: p.grad for name, p in run.network.named_parameters() if p.grad is not None}


def test_scales_and_shifts_have_the_penalty_of_their_filters_and_others_none(tmp_path: Path) -> None:
    run = live(tmp_path, "greg1", FAST, {"sparsity": 0.5}, **RESNET)
    for parameter in run.network.parameters():
        parameter.data.uniform_(0.5, 1.0)
    pruned = run.hook.tensors["pruned"]
    found = penalty(run)
    for name, gradient in found.items():
        block, _, kind = name.rpartition(".")
        weight = run.network.get_parameter(name).detach()
        if name in pruned:
            assert torch.allclose(gradient, 0.25 * weight * pruned[name])
        elif block.endswith("bn1") and block != "bn1":
            gone = pruned[block.replace("bn1", "conv1") + ".weight"].flatten()
            assert 0 < int(gone.sum()) < len(gone)
            assert torch.allclose(gradient, 0.25 * weight * gone), kind
        else:
            assert not gradient.any(), name


def test_of_units_that_several_layers_make_all_filters_have_to_go(tmp_path: Path) -> None:
    run = live(tmp_path, "greg1", FAST, {"ratios": {"conv1": 0.5, "layer1.*.conv2": 0.5}}, **PROJECTED)
    found = penalty(run)
    gone = run.hook.tensors["pruned"]["conv1.weight"].flatten()
    behind = [name for name, gradient in found.items() if "bn" in name and gradient.any()]
    assert behind == [f"{norm}.weight" for norm in ("bn1", "layer1.0.bn2", "layer1.1.bn2", "layer1.2.bn2")]
    for name in behind:  # the shifts are still zero
        assert torch.equal(found[name] != 0, gone)


class Joined(nn.Module):
    """One batch norm behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.norm = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 6, 3), nn.BatchNorm2d(10)
        self.fc = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.cat([self.left(x), self.right(x)], 1)).relu()
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_a_norm_of_several_layers_has_the_penalty_of_each_at_its_channels(tmp_path: Path) -> None:
    run = live(tmp_path, "greg1", FAST, {"ratios": {"left": 0.5, "right": 0.5}}, **JOINED)
    found = penalty(run)
    gone = torch.cat([run.hook.tensors["pruned"][f"{layer}.weight"].flatten() for layer in ("left", "right")])
    assert torch.equal(found["norm.weight"], 0.25 * gone)


def test_the_removal_behind_batch_norms_changes_next_to_nothing(tmp_path: Path) -> None:
    train(tmp_path, epochs=3, batch_size=64, **RESNET)
    lost = {}
    for norms in ("false", "true"):
        say = Listening()
        prune(
            tmp_path / "x.safetensors", say, method="greg1", sparsity=0.5, epochs=None, batch_size=64, lr=0.01,
            method_arg=("delta=0.1", "k_u=1", "tau=2", "k_s=150", f"norms={norms}"),
        )  # fmt: skip
        lost[norms] = float(re.search(r"outputs within (\S+)%", say.lines[-1])[1])
    assert lost["true"] < 2
    assert lost["true"] < lost["false"] / 5


@pytest.mark.parametrize("method", ["greg1", "greg2"])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, method: str) -> None:
    arguments = ("delta=0.25", "k_u=1", "k_s=3", "norms=true")
    picking = ("tau_pick=0.5", "delta_pick=0.25") if method == "greg2" else ()
    check_resumed(tmp_path, 4, method=method, sparsity=0.5, method_arg=(*arguments, *picking), **RESNET)
