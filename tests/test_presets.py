"""Li et al.'s published configurations: widths, parameters and MACs exactly as in their table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunecli import checkpoint as checkpoints
from prunecli import measure, models
from prunecli.checkpoint import Checkpoint
from prunecli.commands.prune import run
from prunecli.errors import UsageError
from prunecli.methods.presets import PRESETS
from prunecli.options.prune import PruneOptions
from prunecli.sidecar import Arch, Sidecar

TABLE = {
    "vgg16-a": (5_397_034, 206.3, 14_987_722),
    "resnet56-a": (773_336, 112.4, 853_018),
    "resnet56-b": (735_712, 90.9, 853_018),
    "resnet110-a": (1_688_522, 212.8, 1_727_962),
    "resnet110-b": (1_168_424, 155.1, 1_727_962),
}


def dense(folder: Path, name: str, **args: object) -> Path:
    """A checkpoint of a new network, as `train --epochs 0` would write it."""
    torch.manual_seed(0)
    network = models.build(name, args)
    example = torch.zeros(1, *models.input_shape(name, args))
    sidecar = Sidecar(arch=Arch(name=name, args=args), cost=measure.cost(network, example))
    path = folder / "dense.safetensors"
    checkpoints.save(Checkpoint(network.state_dict(), sidecar), path)
    return path


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_macs_are_those_of_the_table(name: str, tmp_path: Path) -> None:
    params, macs, before = TABLE[name]
    preset = PRESETS[f"li2017:{name}"]
    path = dense(tmp_path, preset.arch, **({"hidden": 512} if preset.arch == "vgg16" else {}))
    out = tmp_path / "cut.safetensors"
    result = run(PruneOptions(checkpoint=str(path), output=str(out), preset=f"li2017:{name}"))
    assert result.before["params"] == before
    assert result.after["params"] == params
    assert round(result.after["macs"] / 1e6, 1) == macs
    weights = checkpoints.load(out).weights
    changed = {row.name: row.after for row in result.rows if row.after < row.before}
    assert {layer: weights[f"{layer}.weight"].shape[0] for layer in changed} == changed
    assert len(changed) == len(preset.shares)


@pytest.mark.parametrize(("name", "widths"), [("resnet34-a", (44, 89, 179)), ("resnet34-b", (32, 51, 153))])
def test_resnet34_prunes_the_unskipped_first_convolutions(name: str, widths: tuple[int, ...], tmp_path: Path) -> None:
    path = dense(tmp_path, "torchvision:resnet34", num_classes=10)
    result = run(PruneOptions(checkpoint=str(path), output="", preset=f"li2017:{name}", dry_run=True))
    changed = {row.name: row.after for row in result.rows if row.after < row.before}
    assert changed == {
        **{f"layer1.{block}.conv1": widths[0] for block in (1, 2)},
        **{f"layer2.{block}.conv1": widths[1] for block in (1, 2)},
        **{f"layer3.{block}.conv1": widths[2] for block in (1, 2, 3, 4)},
    }
    assert not list(tmp_path.glob("*cut*"))


def test_resnet56_b_widths_and_skips(tmp_path: Path) -> None:
    path = dense(tmp_path, "resnet56")
    result = run(PruneOptions(checkpoint=str(path), output="", preset="li2017:resnet56-b", dry_run=True))
    after = {row.name: row.after for row in result.rows}
    firsts = [[after[f"layer{stage}.{block}.conv1"] for block in range(9)] for stage in (1, 2, 3)]
    assert firsts == [
        [6, 6, 6, 6, 6, 6, 6, 16, 16],  # convolutions 16 and 18 are skipped
        [32, 22, 22, 22, 22, 22, 22, 32, 22],  # 20 and 34
        [64, 57, 57, 57, 57, 57, 57, 57, 64],  # 38 and 54
    ]


def test_a_preset_is_refused_for_another_architecture(tmp_path: Path) -> None:
    path = dense(tmp_path, "resnet20")
    with pytest.raises(UsageError, match="made for resnet56") as caught:
        run(PruneOptions(checkpoint=str(path), output="", preset="li2017:resnet56-a", dry_run=True))
    assert "--arch resnet56" in caught.value.hint


def test_a_preset_is_refused_for_a_cut_network(tmp_path: Path) -> None:
    path, cut = dense(tmp_path, "resnet56"), str(tmp_path / "cut.safetensors")
    run(PruneOptions(checkpoint=str(path), output=cut, preset="li2017:resnet56-a"))
    with pytest.raises(UsageError, match="already cut"):
        run(PruneOptions(checkpoint=cut, output="", preset="li2017:resnet56-a", dry_run=True))
