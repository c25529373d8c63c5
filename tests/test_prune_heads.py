"""`prune --heads`: whole heads of attention, on timm's vision transformers and on networks that have none to lose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pruning import after, prune, write

import prunecli
from prunecli import checkpoint as checkpoints
from prunecli.commands.report import run as report
from prunecli.errors import UsageError
from prunecli.options.report import ReportOptions
from prunecli.options.scratch import ScratchOptions
from prunecli.options.train import TrainOptions
from prunecli.retraining import shape

VIT = "timm:vit_tiny_patch16_224"  # three heads of 64 channels
QKV = ("blocks.0.attn.qkv", "blocks.1.attn.qkv")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("vit"), VIT, img_size=32, depth=2, num_classes=5)


def attention(source: Path, output: str = "out", **options: Any) -> Any:
    return prune(source, output, **{"sparsity": 0.4, "only": ("*.qkv",), "heads": True} | options)


def test_whole_heads_go_and_the_rest_computes_as_before(vit: Path) -> None:
    result = attention(vit)
    assert not result.notes  # the heads that stay are as wide as they were
    assert [(row.before, row.after) for row in result.rows if row.name in QKV] == [(3, 1)] * 2
    dense, cut = checkpoints.load(vit), checkpoints.load(vit.parent / "out.safetensors")
    assert cut.sidecar.surgery.attributes["blocks.0.attn"] == {"num_heads": 1, "attn_dim": 64}
    masked = checkpoints.build(dense)
    for name in QKV:
        layer = masked.get_submodule(name.removesuffix(".qkv") + ".proj")
        axes = cut.sidecar.surgery.axes[f"{name.removesuffix('.qkv')}.proj.weight"]
        kept = cut.sidecar.surgery.index[axes["1"]].kept
        assert kept == list(range(kept[0], kept[0] + 64))
        assert kept[0] % 64 == 0
        gone = torch.ones(192, dtype=torch.bool)
        gone[kept] = False
        layer.weight.data[:, gone] = 0
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(checkpoints.build(cut)(x), masked(x), atol=1e-5)


def test_without_it_every_head_gets_narrower(vit: Path) -> None:
    result = attention(vit, heads=False, dry_run=True)
    assert [after(result)[name] for name in QKV] == [38, 38]  # of 64
    assert any("head's width" in note for note in result.notes)


def test_a_guide_that_lost_whole_heads_gives_whole_heads(tmp_path: Path) -> None:
    arch = {"arch": VIT, "arch_arg": ("img_size=32", "depth=1"), "data": "digits", "epochs": 0, "threads": 1}
    prunecli.train(TrainOptions(**arch, output=str(tmp_path / "vit.safetensors")))
    attention(tmp_path / "vit.safetensors", "guide")
    prune(tmp_path / "vit.safetensors", "narrow", sparsity=0.5, only=("*.mlp.fc1",))
    options = {"checkpoint": str(tmp_path / "narrow.safetensors"), "guide": str(tmp_path / "guide.safetensors")}
    output = str(tmp_path / "scratch.safetensors")
    prunecli.scratch(ScratchOptions(**options, output=output, shape="transferred", epochs=0, threads=1))
    made = checkpoints.load(output)
    assert made.sidecar.surgery.attributes["blocks.0.attn"] == {"num_heads": 2, "attn_dim": 128}  # 2/3 of 3
    assert made.weights["blocks.0.mlp.fc1.weight"].shape[0] == 512  # the mean of 1/3 and 1, of 768


def test_the_structure_of_a_report_has_channels_of_heads_or_heads(vit: Path) -> None:
    units = []
    for heads in (False, True):
        made = report(ReportOptions(checkpoints=(str(vit),), structure=True, heads=heads, compressed=False))
        groups = made.data()["checkpoints"][0]["structure"]["groups"]
        units.append([group["units"] for group in groups if group["key"] in QKV])
    assert units == [[64, 64], [3, 3]]
    with pytest.raises(UsageError, match="--heads means nothing without --structure"):
        ReportOptions(checkpoints=(str(vit),), heads=True)


def test_a_dry_run_tells_heads_and_their_channels(vit: Path) -> None:
    result = attention(vit, only=(), skip=("patch_embed.proj",), dry_run=True)
    told = [line.split() for line in result.text().splitlines()]
    assert [QKV[0], "3", "->", "1", "units", "(576", "->", "192", "channels)"] in told
    row = next(row for row in result.data()["groups"] if row["name"] == QKV[0])
    assert {(m["tensor"], m["axis"], m["before"], m["after"]) for m in row["members"]} == {
        ("blocks.0.attn.qkv.weight", 0, 576, 192),
        ("blocks.0.attn.qkv.bias", 0, 576, 192),
        ("blocks.0.attn.proj.weight", 1, 192, 64),
    }
    assert row["saved"]["params"] == 384 * 192 + 384 + 128 * 192
    tied = next(row for row in result.rows if row.name == "patch_embed.proj")
    assert {"cls_token", "pos_embed"} < {member.tensor for member in tied.members}


def test_the_history_says_it_and_other_commands_know(vit: Path) -> None:
    attention(vit)
    cut = checkpoints.load(vit.parent / "out.safetensors")
    assert cut.sidecar.history[-1].options["heads"] is True
    assert shape.has_whole_heads(cut)
    found = shape.dense(cut, checkpoints.build(checkpoints.load(vit)), heads=True)
    assert [found.widths[name] for name in QKV] == [1, 1]


def test_rounds_go_on_where_one_head_is_left(vit: Path) -> None:
    result = attention(vit, only=(), skip=("patch_embed.proj",), sparsity=0.7, rounds=4)
    at_once = attention(vit, "once", only=(), skip=("patch_embed.proj",), sparsity=0.7)
    assert result.rows == at_once.rows
    assert [after(result)[name] for name in QKV] == [1, 1]
    assert result.after == at_once.after


def test_the_last_head_stays_whole(vit: Path) -> None:
    attention(vit)
    with pytest.raises(UsageError, match=r"no heads.*blocks\.0\.attn\.qkv") as caught:
        attention(vit.parent / "out.safetensors", "never")
    assert "--heads" in caught.value.hint
    assert not (vit.parent / "never.safetensors").exists()


def test_a_network_without_attention_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no heads"):
        prune(write(tmp_path), sparsity=0.5, heads=True)
    assert not (tmp_path / "out.safetensors").exists()
