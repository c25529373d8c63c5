"""`prune` within limits: what one layer may lose, multiples of channels, what layers read; what nothing can meet."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pruning import after, prune

from prunecli import checkpoint as checkpoints
from prunecli import measure, models
from prunecli.checkpoint import Checkpoint
from prunecli.cli.boundary import run
from prunecli.commands.pruned import PruneResult
from prunecli.commands.report import run as report
from prunecli.errors import UsageError
from prunecli.options.report import ReportOptions
from prunecli.reporting.model import Report
from prunecli.sidecar import Arch, Sidecar

GROUPED = """
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.mid = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 48, 3, padding=1, groups=4)
        self.back, self.small, self.fc = nn.Conv2d(48, 32, 1), nn.Conv2d(32, 12, 1), nn.Linear(12, 10)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.back(self.mid(x).relu())).relu()
        return self.fc(self.small(x).relu().mean((2, 3)))
"""


@pytest.fixture
def grouped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "grouped_net.py").write_text(GROUPED)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    arch = Arch(name="grouped_net:Network")
    network = models.build(arch.name, {}, ("grouped_net",))
    cost = measure.cost(network, torch.zeros(1, 1, 8, 8))
    checkpoints.save(Checkpoint(network.state_dict(), Sidecar(arch=arch, cost=cost)), tmp_path / "grouped.safetensors")
    return tmp_path / "grouped.safetensors"


@pytest.mark.parametrize("method", ["l1", "bn-scale", "magnitude"])
@pytest.mark.parametrize("target", [{"sparsity": 0.45}, {"max_params": "40%"}])
def test_no_scope_lets_a_layer_lose_more_than_its_limit(resnet: Path, method: str, target: dict[str, Any]) -> None:
    def shares(result: PruneResult) -> list[float]:
        return [1 - row.after / row.before for row in result.rows]

    free = prune(resnet, method=method, scope="global", dry_run=True, **target)
    limit = max(shares(free)) - 0.02
    held = prune(resnet, method=method, scope="global", max_layer_sparsity=limit, dry_run=True, **target)
    assert max(shares(held)) <= limit
    if "sparsity" in target:  # others lose more instead
        assert sum(row.after for row in held.rows) == sum(row.after for row in free.rows)
        assert any("--max-layer-sparsity" in note for note in held.notes)
    else:
        assert held.after["nonzero_params"] <= 0.4 * held.before["nonzero_params"]


def test_rounds_do_not_escape_the_limit(lenet: Path) -> None:
    result = prune(lenet, scope="global", sparsity=0.6, max_layer_sparsity=0.7, rounds=3)
    assert all(row.after >= row.before - math.floor(0.7 * row.before) for row in result.rows)
    assert sum(row.after for row in result.rows) == math.floor(sum(row.before for row in result.rows) * 0.4 + 1e-9)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_channels_of_grouped_convolutions_are_rounded(grouped: Path, scope: str) -> None:
    """A unit is a channel of each of four groups, so that an even number of units is a multiple of eight channels."""
    result = prune(grouped, scope=scope, sparsity=0.4, round_to=8, trust=("grouped_net",))
    assert [row.before for row in result.rows] == [8, 12, 12]
    cut = checkpoints.load(grouped.parent / "out.safetensors")
    network = checkpoints.build(cut, trust=("grouped_net",))
    for name in ("stem", "mid", "back", "small"):
        assert cut.weights[f"{name}.weight"].shape[0] in ({8, 12} if name == "small" else {8, 16, 24, 32, 40})
    assert network.mid.groups == 4
    assert cut.weights["mid.weight"].shape[:2] == (network.mid.out_channels, network.stem.out_channels // 4)
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert f"(48 -> {network.mid.out_channels} channels)" in result.text()


def test_what_rounding_keeps_of_a_target_is_said(grouped: Path) -> None:
    result = prune(grouped, sparsity=0.5, round_to=8, trust=("grouped_net",), dry_run=True)
    assert after(result) == {"stem": 4, "mid": 6, "small": 8}
    assert result.notes == ["14 of 32 units go (43.8%), 16 were asked for (50.0%): --round-to 8 keeps the others"]
    exact = prune(grouped, sparsity=0.5, round_to=2, trust=("grouped_net",), dry_run=True)
    assert not exact.notes


@pytest.mark.parametrize("target", [{"sparsity": 0.7}, {"ratios": "stem=0.7,back=0.7,mid=0.5"}])
def test_rounds_cut_grouped_convolutions_as_at_once(grouped: Path, target: dict[str, Any]) -> None:
    """On the way four groups become no fewer than the channels of each; a report tells the units that are left."""
    shapes = []
    for rounds in (1, 4):
        prune(grouped, rounds=rounds, trust=("grouped_net",), **target)
        cut = checkpoints.load(grouped.parent / "out.safetensors")
        shapes.append({name: tensor.shape for name, tensor in cut.weights.items()})
    assert shapes[0] == shapes[1]
    out = str(grouped.parent / "out.safetensors")
    made = report(ReportOptions(checkpoints=(out,), structure=True, compressed=False, trust=("grouped_net",)))
    assert isinstance(made, Report)
    told = {group["key"]: group["units"] for group in made.data()["checkpoints"][0]["structure"]["groups"]}
    assert (told["stem"], told["mid"]) == (len(cut.weights["stem.weight"]) // 4, len(cut.weights["mid.weight"]) // 4)


def test_every_layer_that_stays_whole_is_named_with_the_reason(lenet: Path) -> None:
    result = prune(lenet, sparsity=0.5, round_to=8, skip_inputs=("fc2",), skip=("conv2",), dry_run=True)
    layers = {layer for row in result.rows for layer in row.layers}
    cut = {layer for row in result.rows if row.after < row.before for layer in row.layers}
    assert layers | {"fc2"} == cut | {*result.unpruned} | {"conv2"}
    assert result.unpruned == {
        "conv1": "--round-to 8 leaves it no width below its 6 units",
        "fc1": "the inputs of fc2 are to be skipped",
        "fc2": "its channels are outputs of the network",
    }
    assert result.data()["not_pruned"] == result.unpruned
    for layer, why in result.unpruned.items():
        assert f"  not pruned: {layer} ({why})" in result.text().splitlines()


def test_skipping_inputs_is_not_skipping_outputs(lenet: Path) -> None:
    before = {name: tensor.shape for name, tensor in checkpoints.load(lenet).weights.items()}
    prune(lenet, sparsity=0.5, skip_inputs=("conv2",))
    weights = checkpoints.load(lenet.parent / "out.safetensors").weights
    assert weights["conv2.weight"].shape[1] == before["conv2.weight"][1]
    assert weights["conv2.weight"].shape[0] == before["conv2.weight"][0] // 2
    prune(lenet, sparsity=0.5, skip=("conv2",))
    weights = checkpoints.load(lenet.parent / "out.safetensors").weights
    assert weights["conv2.weight"].shape[1] == before["conv2.weight"][1] // 2
    assert weights["conv2.weight"].shape[0] == before["conv2.weight"][0]


@pytest.mark.parametrize(
    ("options", "code", "error", "hint"),
    [
        (["--sparsity", "0.5", "--skip-inputs", "cnv2"], 2, "--skip-inputs cnv2", "did you mean 'conv2'"),
        (["--sparsity", "0.5", "--skip-inputs", "*"], 4, "the inputs of conv2 are to be skipped", "prunable are conv1"),
        (["--sparsity", "0.5", "--round-to", "1000"], 4, "--round-to 1000 leaves no layer", "lower --round-to"),
        (["--sparsity", "60%", "--max-layer-sparsity", "50%"], 4, "--sparsity 0.6 cannot be met", "at most 0.5"),
        (["--sparsity", "60%", "--max-layer-sparsity", "0"], 4, "cannot be met", "hint: raise --max-layer-sparsity"),
        (["--sparsity", "0.5", "--skip", "*"], 4, "nothing to prune: --skip '*' leaves no layer", "prunable are conv1"),
        (
            ["--method", "magnitude", "--sparsity", "0.5", "--only", "conv1", "--skip", "*"],
            4,
            "--only conv1 --skip '*' leaves no weight to mask",
            "weights are in conv1",
        ),
        (
            [
                "--method",
                "swd",
                "--weight-decay",
                "1e-4",
                "--epochs",
                "1",
                "--data",
                "digits",
                "--sparsity",
                "0.5",
                "--skip",
                "*",
            ],
            4,
            "nothing to prune: --skip '*' leaves no weight",
            "weights are in conv1",
        ),
        (["--sparsity", "0.5", "--scope", "global", "--round-to", "64"], 4, "units can go", "let layers be narrower"),
        (["--max-macs", "5%", "--max-layer-sparsity", "0.5"], 4, "cannot be met", "raise --max-layer-sparsity"),
        (["--sparsity", "0.5", "--heads"], 2, "--heads: this network has no heads", "drop --heads"),
        (["--sparsity", "0.5", "--recalibrate", "4"], 2, "no data", "--data digits"),
        (["--sparsity", "0.5", "--recalibrate", "-4"], 2, "--recalibrate -4", "a number of batches"),
        (["--sparsity", "0.5", "--recalibrate", "4", "--data", "digits"], 2, "no batch norm", "drop --recalibrate"),
    ],
)
def test_what_cannot_be_done_is_two_lines_and_writes_nothing(
    lenet: Path, options: list[str], code: int, error: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {path: path.read_bytes() for path in lenet.parent.iterdir()}
    output = lenet.parent / "never.safetensors"
    assert run(["prune", str(lenet), "--method", "l1", *options, "--threads", "1", "-o", str(output)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first.startswith("error: ")
    assert error in first
    assert second.startswith("hint: ")
    assert hint in second
    assert {path: path.read_bytes() for path in lenet.parent.iterdir()} == files


def test_a_cut_to_one_layers_last_unit_is_told_by_name(lenet: Path) -> None:
    prune(lenet, "one", sparsity=0.9, only=("conv1",))
    again = prune(lenet.parent / "one.safetensors", sparsity=0.5, only=("conv1", "conv2"), dry_run=True)
    assert again.unpruned == {"conv1": "its output is a single channel"}
    assert again.notes == ["conv1 named but not pruned: its output is a single channel"]


def test_what_a_dry_run_tells_in_json_is_what_is_cut(resnet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["prune", str(resnet), "--method", "l1", "--sparsity", "0.5", "--threads", "1", "--json", "-q"]
    assert run([*arguments, "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["checkpoint"] is None
    assert run([*arguments, "--no-eval", "-o", str(resnet.parent / "out.safetensors")]) == 0
    done = json.loads(capsys.readouterr().out)
    same = ("before", "after", "groups", "not_pruned", "notes")
    assert {key: told[key] for key in same} == {key: done[key] for key in same}
    dense, cut = checkpoints.load(resnet), checkpoints.load(resnet.parent / "out.safetensors")
    lost = set()
    for member in (member for group in told["groups"] for member in group["members"]):
        lost.add((member["tensor"], member["axis"]))
        assert dense.weights[member["tensor"]].shape[member["axis"]] == member["before"]
        assert cut.weights[member["tensor"]].shape[member["axis"]] == member["after"]
    axes = {(name, int(axis)) for name, axes in cut.sidecar.surgery.axes.items() for axis in axes}
    assert lost == axes
    for group in told["groups"]:
        alone = prune(resnet, sparsity=0.5, only=tuple(group["layers"]), dry_run=True)
        assert {key: alone.before[key] - alone.after[key] for key in group["saved"]} == group["saved"]


def test_networks_that_cannot_be_traced_may_be_masked(lenet: Path, tmp_path: Path) -> None:
    source = checkpoints.load(lenet)
    source.sidecar.cost.input = [7, 7]
    checkpoints.save(source, tmp_path / "odd.safetensors")
    with pytest.raises(UsageError, match="cannot be traced: conv2d in conv1") as raised:
        prune(tmp_path / "odd.safetensors", "cut", sparsity=0.5)
    assert "--method magnitude" in raised.value.hint
    masked = prune(tmp_path / "odd.safetensors", "masked", method="magnitude", sparsity=0.5)
    assert len(masked.checkpoint.sidecar.masks) == 5
