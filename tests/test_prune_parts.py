"""Layers that make only some of the channels that are cut together: none of them is left without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gradual import Listening, train
from torch import Tensor, nn

import prunecli
from prunecli import checkpoint as checkpoints
from prunecli import surgery
from prunecli.errors import TargetError
from prunecli.options.prune import PruneOptions
from prunecli.progress import Silent

OPTIONS: dict[str, Any] = {
    "data": "digits", "epochs": 1, "image_size": 8, "batch_size": 500, "trust": (__name__,), "lr": 0.01,
}  # fmt: skip


class Joined(nn.Module):
    """cat([left(x), right(x)]) + both(x); channels of the `small` side have the smallest scales and weights."""

    def __init__(self, small: str = "left") -> None:
        super().__init__()
        self.left, self.right, self.both = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 6, 3), nn.Conv2d(1, 8, 3)
        self.norm_left, self.norm_right = nn.BatchNorm2d(2), nn.BatchNorm2d(6)
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight)
        with torch.no_grad():
            conv, norm, part = self.left, self.norm_left, slice(0, 2)
            if small == "right":
                conv, norm, part = self.right, self.norm_right, slice(2, 8)
            conv.weight *= 0.01
            self.both.weight[part] *= 0.01
            norm.weight.fill_(0.01)
            self.norm.weight[part] = 0.01

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.norm_left(self.left(x)), self.norm_right(self.right(x))], 1) + self.norm(self.both(x))
        return self.fc(x.relu().mean((2, 3)))  # type: ignore[no-any-return]


def shapes(path: Path) -> dict[str, int]:
    found = checkpoints.load(path).weights
    return {layer: len(found[f"{layer}.weight"]) for layer in ("left", "right", "both")}


def test_of_each_axis_the_best_unit_has_to_stay() -> None:
    (group,) = surgery.trace(Joined(), torch.zeros(2, 1, 8, 8)).groups[:1]
    assert group.whole_axes == [[*range(8)], [0, 1], [*range(2, 8)]]
    assert group.needed([3, 1, 9, 2, 2, 2, 2, 2]) == [0, 2]
    assert group.needed([7, 7, 1, 1, 1, 1, 1, 1]) == [1, 7]


@pytest.mark.parametrize(
    "options",
    [
        {"method": "slimming", "sparsity": 0.7, "method_arg": ("gamma=1e-9", "lambda=1e-9")},
        {"method": "swd-structured", "sparsity": 0.6},
        {"method": "sss", "method_arg": ("gamma=100",)},
        {"method": "sfp", "sparsity": 0.9},
        {"method": "rpgp", "sparsity": 0.9},
        {
            "method": "greg1",
            "sparsity": 0.9,
            "only": ("*",),
            "epochs": None,
            "method_arg": ("delta=1", "k_u=1", "k_s=0"),
        },
    ],
    ids=lambda options: options["method"],
)
def test_a_run_ends_with_a_network_whose_every_layer_has_a_channel(tmp_path: Path, options: dict[str, Any]) -> None:
    made = train(tmp_path, arch=f"{__name__}:Joined", **(OPTIONS | options))
    left, right, both = (len(made.weights[f"{layer}.weight"]) for layer in ("left", "right", "both"))
    assert 1 <= left < 2 or options["method"] == "sfp"
    assert right >= 1
    assert both == left + right < 8


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("method", ["l1", "bn-scale"])
def test_one_shot_pruning_leaves_one_channel_on_each_side(tmp_path: Path, method: str, scope: str) -> None:
    train(tmp_path, arch=f"{__name__}:Joined", **(OPTIONS | {"epochs": 0}))
    path, out = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    common: dict[str, Any] = {"checkpoint": str(path), "method": method, "scope": scope, "trust": (__name__,)}
    prunecli.prune(PruneOptions(**common, sparsity=0.75, no_eval=True, output=str(out)), Silent())
    assert shapes(out) == {"left": 1, "right": 1, "both": 2}
    heard = Listening()
    more = PruneOptions(**common, sparsity=0.9, no_eval=True, output=str(out))
    if scope == "global":
        with pytest.raises(TargetError, match="only 6 of 8 units can go"):
            prunecli.prune(more, heard)
    else:
        prunecli.prune(more, heard)
        assert shapes(out) == {"left": 1, "right": 1, "both": 2}


@pytest.mark.parametrize("small", ["left", "right"])
def test_greg_picks_units_that_can_all_be_cut(tmp_path: Path, small: str) -> None:
    options = OPTIONS | {"arch": f"{__name__}:Joined", "arch_arg": (f"small={small}",), "epochs": None}
    fast = ("delta=1", "k_u=1", "k_s=0")
    say = Listening()
    made = train(tmp_path, say, method="greg1", sparsity=0.5, only=("*",), method_arg=fast, **options)
    assert not made.sidecar.masks
    widths = {layer: len(made.weights[f"{layer}.weight"]) for layer in ("left", "right", "both")}
    assert widths == ({"left": 1, "right": 3, "both": 4} if small == "left" else {"left": 2, "right": 2, "both": 4})
    assert not any("1/0" in line for line in say.lines)
    table = tmp_path / "all.json"
    table.write_text('{"left": [0, 1], "both": [0, 1]}')
    with pytest.raises(TargetError, match="nothing of left would be left"):
        train(tmp_path, method="greg1", method_arg=(*fast, f"indices={table}"), **options)
