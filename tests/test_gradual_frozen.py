"""Methods and networks of which not all is trained, that draw random numbers, or whose shortcuts have no factor; and
tensors of methods that are not their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gradual import KillAt, Killed, Listening, check_resumed, train
from torch import Tensor, nn

from prunecli import checkpoint as checkpoints
from prunecli.checkpoint import to_array, to_tensor
from prunecli.errors import DamagedError, TargetError

TINY: dict[str, Any] = {"trust": (__name__,), "image_size": 8, "batch_size": 700, "epochs": 1}


class Plain(nn.Sequential):
    """Two convolutions with batch norms, and a classifier; the first `frozen` modules are not trained."""

    def __init__(self, frozen: int = 0) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
        )  # fmt: skip
        for module in [*self][: int(frozen)]:
            module.requires_grad_(False)


class Skipping(Plain):
    """Leaves the second convolution out at random while it trains."""

    def forward(self, x: Tensor) -> Tensor:
        conv1, norm1, relu, conv2, norm2, _, pool, flatten, fc = self
        x = relu(norm1(conv1(x)))
        if not self.training or torch.rand(1).item() > 0.3:
            x = x + norm2(conv2(x))
        return fc(flatten(pool(x)))  # type: ignore[no-any-return]


class Bare(nn.Module):
    """A residual block whose shortcut is a convolution without a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.shortcut, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (self.norm(self.conv(x)) + self.shortcut(x)).relu()
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


PENALTIES = [
    {"method": "swd", "sparsity": 0.5},
    {"method": "adaptive-sparsity", "sparsity": 0.5, "method_arg": ("mode=bs", "min_weights=1")},
    {"method": "greg1", "sparsity": 0.5, "only": ("*",), "method_arg": ("delta=1", "k_u=1", "k_s=0")},
    {"method": "greg1", "sparsity": 0.5, "only": ("*",), "method_arg": ("delta=1", "k_u=1", "k_s=0", "pick=obd")},
    {"method": "greg2", "sparsity": 0.5, "only": ("*",),
     "method_arg": ("delta=1", "delta_pick=0.01", "k_u=1", "k_s=0", "structure=weights")},
]  # fmt: skip


@pytest.mark.parametrize("options", PENALTIES)
def test_a_penalty_leaves_alone_what_is_not_trained(tmp_path: Path, options: dict[str, Any]) -> None:
    heard = Listening()
    options = TINY | {"arch": f"{__name__}:Plain"} | options
    made = train(tmp_path, say=heard, arch_arg=("frozen=2",), **options)
    assert any("0 left as is: not trained" in line for line in heard.lines)
    assert "0.weight" not in made.sidecar.masks
    assert len(made.weights["0.weight"]) == 8
    with pytest.raises(TargetError, match="not trained"):
        train(tmp_path, arch_arg=("frozen=9",), **options)


def test_slimming_wants_a_scale_that_is_trained(tmp_path: Path) -> None:
    options = TINY | {"arch": f"{__name__}:Plain", "arch_arg": ("frozen=5",), "method": "slimming", "sparsity": 0.5}
    with pytest.raises(TargetError, match="no scale of a batch norm is trained"):
        train(tmp_path, **options)


def test_numbers_that_tracing_draws_are_not_those_of_the_run(tmp_path: Path) -> None:
    options = TINY | {"arch": f"{__name__}:Skipping", "batch_size": 200, "epochs": 2}
    check_resumed(tmp_path, 3, method="sfp", sparsity=0.5, **options)


def test_sss_cuts_no_channels_that_a_layer_without_a_factor_makes_too(tmp_path: Path) -> None:
    heard = Listening()
    options = TINY | {"arch": f"{__name__}:Bare", "method": "sss", "method_arg": ("gamma=100",), "epochs": 2}
    made = train(tmp_path, say=heard, **options)
    assert any("left whole: what has no factor" in line for line in heard.lines)
    assert made.weights["shortcut.weight"].shape == (8, 8, 1, 1)
    assert not made.weights["norm.weight"].any()


@pytest.mark.parametrize(
    ("options", "kind", "change", "words"),
    [
        ({"method": "sss"}, "velocity", "drop", "velocity of .* is missing"),
        ({"method": "sss"}, "lambda", "shape", r"lambda of .* is torch.float32 \[1\], not"),
        ({"method": "rpgp", "sparsity": 0.5}, "scores", "drop", "scores of .* is missing"),
        (PENALTIES[2], "pruned", "float", "pruned of .* is torch.float32 .*, not torch.bool"),
        (PENALTIES[2], "pruned", "shape", "pruned of .* is torch.bool"),
    ],
)
def test_tensors_of_a_method_that_are_not_its_own_are_refused(
    tmp_path: Path, options: dict[str, Any], kind: str, change: str, words: str
) -> None:
    options = TINY | {"arch": f"{__name__}:Plain", "batch_size": 200, "epochs": 2, "save_every": 1} | options
    with pytest.raises(Killed):
        train(tmp_path, say=KillAt(2), **options)
    partial = tmp_path / "x.partial.safetensors"
    saved = checkpoints.load(partial)
    assert saved.sidecar.training
    arrays = saved.sidecar.training.method.tensors[kind]
    name = min(arrays)
    tensor = to_tensor(arrays[name])
    changed = {"shape": tensor.flatten()[:1], "float": tensor.float(), "drop": None}[change]
    arrays.update({name: to_array(changed)} if changed is not None else {})
    if changed is None:
        del arrays[name]
    checkpoints.save(saved, partial)
    with pytest.raises(DamagedError, match=words):
        train(tmp_path, resume=True, **options)
