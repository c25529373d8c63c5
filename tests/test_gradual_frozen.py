"""Methods and networks of which not all is trained, that draw random numbers, or whose shortcuts have no factor; and
tensors of methods that are not their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gradual import KillAt, Killed, Listening, check_resumed, finetune, prune, train
from torch import Tensor, nn

import prunecli
from prunecli import checkpoint as checkpoints
from prunecli.checkpoint import to_array, to_tensor
from prunecli.errors import DamagedError, TargetError
from prunecli.methods import gradual
from prunecli.options.export import ExportOptions
from prunecli.options.rewind import RewindOptions

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
    """A residual block whose shortcut is a convolution without a batch norm, and `frozen` where that is asked."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.shortcut, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 10)
        self.shortcut.requires_grad_(not frozen)

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


@pytest.mark.parametrize("method", ["slimming", "swd-structured"])
def test_channels_whose_scales_are_not_trained_stay(tmp_path: Path, method: str) -> None:
    heard = Listening()
    options = TINY | {"arch": f"{__name__}:Plain", "arch_arg": ("frozen=2",), "method": method, "sparsity": 0.3}
    made = train(tmp_path, say=heard, **options)
    assert any("0 left as is: scales of batch norms behind are not trained" in line for line in heard.lines)
    assert len(made.weights["0.weight"]) == 8
    assert len(made.weights["3.weight"]) < 8


def test_filters_that_only_go_together_with_frozen_ones_are_refused_as_such(tmp_path: Path) -> None:
    options = TINY | {"arch": f"{__name__}:Bare", "arch_arg": ("frozen=true",), "only": ("conv", "shortcut")}
    with pytest.raises(TargetError, match="conv, shortcut not trained"):
        train(tmp_path, method="greg1", sparsity=0.5, method_arg=("delta=1", "k_u=1", "k_s=0"), **options)


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


class TwoHeads(Plain):
    """Returns an auxiliary head, too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = super().forward(x)
        return x, 0.5 * x


def test_a_network_of_several_outputs_is_pruned(tmp_path: Path) -> None:
    made = train(tmp_path, method="sfp", sparsity=0.5, **TINY | {"arch": f"{__name__}:TwoHeads"})
    assert [len(made.weights[name]) for name in ("0.weight", "3.weight")] == [4, 4]


def test_layers_of_one_filter_do_not_stop_a_resumed_run(tmp_path: Path) -> None:
    options = {"method": "rpgp", "sparsity": 0.9, "method_arg": ("r=1",), "epochs": 5}
    check_resumed(tmp_path, 26, **options)  # in the last epoch: after the fourth one of conv1's six filters is left


def test_a_path_in_a_sidecar_is_not_opened(tmp_path: Path) -> None:
    made = train(tmp_path, epochs=1, keep="0")
    assert made.path
    snapshot = checkpoints.load(made.path.with_name("x.epoch0.safetensors"))
    assert snapshot.sidecar.training
    snapshot.sidecar.training.method = gradual.resolve("greg1", {}, {"indices": "/dev/zero"})
    checkpoints.save(snapshot, tmp_path / "forged.safetensors")
    with pytest.raises(DamagedError, match="indices of --method greg1 is no SHA-256 but '/dev/zero'"):
        finetune(tmp_path / "forged.safetensors")


def test_a_snapshot_in_the_middle_of_a_method_can_be_pruned_and_goes_on_without_it(tmp_path: Path) -> None:
    heard = Listening()
    train(tmp_path, method="sss", keep="1", **TINY | {"arch": f"{__name__}:Plain", "epochs": 2})
    prune_once = {"method": "l1", "sparsity": 0.5, "epochs": None, "batch_size": None, "lr": None}
    made = prune(tmp_path / "x.epoch1.safetensors", say=heard, trust=(__name__,), **prune_once)
    assert "in the middle of --method sss, whose lambda, velocity beside the weights are left out" in heard.lines[0]
    again = Listening()
    prune(tmp_path / "x.epoch1.safetensors", say=again, trust=(__name__,), method="swd", sparsity=0.5,
          output=str(tmp_path / "swd.safetensors"))  # fmt: skip
    assert again.lines[0] == heard.lines[0]
    tuned = finetune(tmp_path / "pruned.safetensors", trust=(__name__,))
    assert len(tuned.weights["0.weight"]) == len(made.weights["0.weight"]) == 4
    assert tuned.sidecar.training
    assert tuned.sidecar.training.epoch == 2
    output = str(tmp_path / "x.onnx")
    snapshot = str(tmp_path / "x.epoch1.safetensors")
    prunecli.export(ExportOptions(checkpoint=snapshot, output=output, trust=(__name__,), inputs="random"), heard)
    assert heard.lines[-1] == heard.lines[0]


def test_rewinding_to_a_snapshot_says_what_the_method_kept_beside_the_weights(tmp_path: Path) -> None:
    options = TINY | {"arch": f"{__name__}:Plain", "epochs": 3, "method_arg": ("gamma=1e-9",)}
    made = train(tmp_path, method="sss", keep="0,1", **options)
    for epoch, said in ((0, False), (1, True)):
        heard = Listening()
        snapshot, output = tmp_path / f"x.epoch{epoch}.safetensors", tmp_path / "y.safetensors"
        prunecli.rewind(RewindOptions(checkpoint=str(made.path), to=str(snapshot), output=str(output)), heard)
        assert any("whose lambda, velocity beside the weights are left out" in line for line in heard.lines) == said
        tuned = finetune(output, trust=(__name__,))
        assert tuned.sidecar.training
        assert tuned.sidecar.training.epoch == 3
