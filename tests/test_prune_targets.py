"""Targets of `prune`: budgets met exactly or refused, and the layers that are meant."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pruning import after, prune, write

from prunecli import checkpoint as checkpoints
from prunecli import measure, models, surgery
from prunecli.checkpoint import Checkpoint
from prunecli.errors import TargetError, UsageError
from prunecli.options import parse_amount
from prunecli.options.prune import PruneOptions
from prunecli.sidecar import Arch, Sidecar


def met_by_the_largest(path: Path, scope: str, round_to: int, max_macs: str | None, max_params: str | None) -> None:
    """The budget is met, and no unit (or multiple of them) can be given back to any layer."""
    result = prune(path, scope=scope, round_to=round_to, dry_run=True, max_macs=max_macs, max_params=max_params)
    macs = parse_amount(max_macs or "100%", "").of(result.before["macs"])
    params = parse_amount(max_params or "100%", "").of(result.before["params"])
    dense = checkpoints.load(path)
    structure = surgery.trace(checkpoints.build(dense), torch.zeros(2, 3, 32, 32))

    def fits(widths: dict[str, int]) -> bool:
        shapes = structure.shapes(surgery.Plan({name: list(range(width)) for name, width in widths.items()}))
        sums = measure.totals(dense.sidecar.cost, shapes, {})
        return sums.macs <= macs and sums.params <= params

    found = {row.name: row for row in result.rows}
    widths = {name: row.after for name, row in found.items()}
    assert result.after["macs"] <= macs
    assert result.after["params"] <= params
    assert fits(widths)
    for name, row in found.items():
        assert row.after % round_to == 0 or row.after == row.before
        assert row.after == row.before or not fits(widths | {name: min(row.before, row.after + round_to)})


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize(("max_macs", "max_params"), [("50%", None), (None, "60k"), ("20M", "40%")])
def test_budgets_are_met_by_a_network_that_nothing_can_be_added_to(
    resnet: Path, scope: str, round_to: int, max_macs: str | None, max_params: str | None
) -> None:
    met_by_the_largest(resnet, scope, round_to, max_macs, max_params)


@pytest.mark.parametrize(("name", "scope", "round_to"), [("densenet40", "global", 1), ("preresnet56", "local", 4)])
def test_budgets_of_networks_whose_layers_read_many_others(
    name: str, scope: str, round_to: int, tmp_path: Path
) -> None:
    met_by_the_largest(write(tmp_path, name), scope, round_to, "60%", "45%")


ATTENTION = """
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.fc = (nn.Linear(8, n) for n in (8, 8, 8, 10))

    def forward(self, x):
        x = x.flatten(1, 2)
        return self.fc((self.q(x) @ self.k(x).mT).softmax(-1) @ self.v(x)).mean(1)
"""


def test_a_budget_of_macs_says_where_products_of_activations_shrank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "attention_net.py").write_text(ATTENTION)
    monkeypatch.syspath_prepend(str(tmp_path))
    network = models.build("attention_net:Network", {}, ("attention_net",))
    cost = measure.cost(network, torch.zeros(1, 1, 8, 8))
    checkpoints.save(
        Checkpoint(network.state_dict(), Sidecar(arch=Arch(name="attention_net:Network"), cost=cost)),
        path := tmp_path / "x.safetensors",
    )
    result = prune(path, max_macs="80%", trust=("attention_net",), only=("q", "k"))
    left = checkpoints.load(tmp_path / "out.safetensors").sidecar.cost.other_macs
    assert result.after["macs"] <= 0.8 * result.before["macs"]
    assert left < cost.other_macs
    assert [note for note in result.notes if "products of activations" in note and f"left {left:,}" in note]
    with pytest.raises(TargetError, match="cannot be met") as caught:
        prune(path, max_macs="70%", trust=("attention_net",), only=("q", "k"))
    assert "1,024 MACs of products of activations" in caught.value.hint


def test_a_budget_that_the_network_meets_already_removes_nothing(lenet: Path) -> None:
    result = prune(lenet, max_macs="100%", dry_run=True)
    assert result.after == result.before


@pytest.mark.parametrize("method", ["l1", "magnitude"])
def test_a_budget_below_the_smallest_network_is_refused_with_what_is_reachable(lenet: Path, method: str) -> None:
    with pytest.raises(TargetError, match="cannot be met") as caught:
        prune(lenet, "never", method=method, max_params="3")
    assert caught.value.exit_code == 4
    assert any(character.isdigit() for character in caught.value.message.split("cannot be met")[1])
    assert not (lenet.parent / "never.safetensors").exists()


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_budget_of_masks_counts_parameters_that_are_not_zero(resnet: Path, scope: str) -> None:
    result = prune(resnet, method="magnitude", scope=scope, max_params="100k")
    assert result.after["nonzero_params"] == 100_000
    again = prune(resnet.parent / "out.safetensors", "again", method="magnitude", scope=scope, max_params="50k")
    assert again.after["nonzero_params"] == 50_000


def test_widths_are_rounded_up(resnet: Path) -> None:
    result = prune(resnet, sparsity=0.45, round_to=8, dry_run=True)
    expected = {16: 8, 32: 24, 64: 40}  # of 8, 17, 35
    assert all(row.after == expected[row.before] for row in result.rows)


def test_one_unit_stays_and_it_is_said(lenet: Path) -> None:
    result = prune(lenet, sparsity=0.999, dry_run=True)
    rows = [row for row in result.rows if row.after < row.before]
    assert all(row.after == 1 for row in rows)
    assert f"kept, as a layer never loses all: one unit of {', '.join(row.name for row in rows)}" in result.notes


@pytest.mark.parametrize(
    "target",
    [
        {"sparsity": 1.0},
        {"ratios": "conv1=1"},
        {"sparsity": 0.6, "max_layer_sparsity": 0.5},
        {"sparsity": 0.6, "max_layer_sparsity": 0.5, "scope": "global"},
        {"ratios": "conv1=0.4,conv2=0.6", "max_layer_sparsity": 0.5},
    ],
)
def test_impossible_shares_fail_before_the_checkpoint_is_read(target: dict[str, Any]) -> None:
    with pytest.raises(TargetError):
        PruneOptions(checkpoint="missing", output="o.safetensors", method="l1", **target)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sparsity": 0.5, "max_macs": "50%"},
        {"sparsity": 0.5, "method": "l7"},
        {"sparsity": 0.5, "method": None},
        {"sparsity": 0.5, "round_to": 0},
        {"sparsity": 0.5, "rounds": 0},
        {"sparsity": 0.5, "scope": "everywhere"},
        {"sparsity": 0.5, "output": "o.pt"},
        {"max_macs": "lots"},
        {"method": "magnitude", "max_macs": "50%"},
        {"method": "magnitude", "sparsity": 0.5, "round_to": 8},
        {"sparsity": 0.5, "tensors": "conv"},
        {"preset": "li2017:resnet56-c", "method": None},
        {"preset": "li2017:resnet56-a", "sparsity": 0.5, "method": None},
        {"preset": "li2017:resnet56-a", "only": ("conv1",), "method": None},
        {"ratios": "conv1=0.5", "scope": "global"},
        {"sparsity": -0.1},
        {"sparsity": 50},
        {"sparsity": math.nan},
        {"ratios": "conv1=60"},
        {"sparsity": 0.5, "max_layer_sparsity": 80},
        {"sparsity": 0.5, "recalibrate": -1},
        {"sparsity": 0.5, "recalibrate": 3, "finetune_epochs": 1},
        {"method": "magnitude", "sparsity": 0.5, "skip_inputs": ("fc",)},
        {"method": "magnitude", "sparsity": 0.5, "compensate": True},
        {"preset": "li2017:resnet56-a", "max_layer_sparsity": 0.5, "method": None},
        {"preset": "li2017:resnet56-a", "skip_inputs": ("fc",), "method": None},
    ],
)
def test_options_that_mean_nothing_are_usage_errors(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        PruneOptions(**{"checkpoint": "c", "output": "o.safetensors", "method": "l1"} | options)


def test_only_and_skip_choose_layers(resnet: Path) -> None:
    result = prune(resnet, sparsity=0.5, only=("layer*.conv1",), skip=("layer3.*",), dry_run=True)
    changed = {row.name for row in result.rows if row.after < row.before}
    assert changed == {f"layer{stage}.{block}.conv1" for stage in (1, 2) for block in (0, 1, 2)}
    assert not result.notes


def test_layers_that_share_units_are_pruned_together_or_not_and_it_is_said(resnet: Path) -> None:
    result = prune(resnet, sparsity=0.5, only=("layer1.*",), dry_run=True)
    widths = after(result)
    assert widths["conv1"] == 16  # the stem writes the same channels as layer1.*.conv2, and was not named
    assert widths["layer1.0.conv1"] == 8
    [note] = result.notes
    assert "layer1.2.conv2" in note
    assert "conv1" in note.split("named but not pruned")[1]
    assert after(prune(resnet, sparsity=0.5, only=("layer1.*", "conv1"), dry_run=True))["conv1"] == 8


def test_a_layer_that_cannot_be_pruned_and_was_named_is_warned_about(lenet: Path) -> None:
    result = prune(lenet, sparsity=0.5, only=("*",), dry_run=True)
    assert [note.split(":")[0] for note in result.notes] == ["fc2 named but not pruned"]
    with pytest.raises(TargetError, match="nothing to prune: fc2 named but not pruned"):
        prune(lenet, sparsity=0.5, only=("fc2",))


def test_a_layer_whose_share_rounds_to_nothing_is_warned_about(resnet: Path) -> None:
    result = prune(
        resnet, method="fpgm", ratios="layer1.0.conv1=0.01,layer2.0.conv1=0.5,layer3.0.conv1=0", dry_run=True
    )
    assert [note.split()[0] for note in result.notes] == ["layer1.0.conv1"]


@pytest.mark.parametrize(
    "option",
    [
        {"only": ("layr1.*",), "sparsity": 0.5},
        {"skip": ("layr1.*",), "sparsity": 0.5},
        {"ratios": "layr1.*=0.5"},
        {"method": "l1", "skip_inputs": ("layr1.*",), "sparsity": 0.5},
    ],
)
@pytest.mark.parametrize("method", ["l1", "magnitude"])
def test_a_pattern_that_names_no_layer_is_refused(resnet: Path, option: dict[str, Any], method: str) -> None:
    with pytest.raises(UsageError, match="layr1") as caught:
        prune(resnet, "never", **{"method": method} | option)
    assert "layer1" in caught.value.hint
    assert not (resnet.parent / "never.safetensors").exists()


def test_ratio_tables_set_each_layer(resnet: Path) -> None:
    result = prune(resnet, ratios="layer1.*.conv1=0.75,layer2.*.conv1=0.5", dry_run=True)
    widths = after(result)
    assert [widths[f"layer{s}.0.conv1"] for s in (1, 2, 3)] == [4, 16, 64]
    masks = prune(resnet, method="magnitude", ratios="layer1.*=0.75,fc=0.5", dry_run=True)
    kept = {row.name: row.after / row.before for row in masks.rows}
    assert kept["layer1.0.conv1.weight"] == 0.25
    assert kept["fc.weight"] == 0.5
    assert "layer2.0.conv1.weight" not in kept


def test_a_method_that_needs_batch_norm_refuses_a_network_without(lenet: Path) -> None:
    with pytest.raises(TargetError, match="batch norm"):
        prune(lenet, method="bn-scale", sparsity=0.5, dry_run=True)
