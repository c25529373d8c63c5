"""`prune` end to end on checkpoint files: what goes is exactly what was asked for, and nothing else is lost."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pruning import momentum, prune, write

from prunecli import checkpoint as checkpoints
from prunecli import measure, models
from prunecli.checkpoint import Checkpoint
from prunecli.commands.prune import run
from prunecli.methods import METHODS, units, weights
from prunecli.methods.targets import Target, Units
from prunecli.options.prune import PruneOptions
from prunecli.sidecar import Arch, Sidecar

STRUCTURED = [name for name, method in METHODS.items() if method.structure == "units"]
UNSTRUCTURED = [name for name, method in METHODS.items() if method.structure == "weights"]


def test_l1_keeps_the_floor_of_the_largest_filters_of_each_layer(lenet: Path) -> None:
    dense = checkpoints.load(lenet)
    result = prune(lenet, sparsity=0.3)
    cut = checkpoints.load(lenet.parent / "out.safetensors")
    for row in result.rows:
        weight = dense.weights[f"{row.name}.weight"]
        if row.after == row.before:
            continue
        assert row.after == math.floor(row.before * 0.7 + 1e-9)
        norms = weight.abs().flatten(1).sum(1)
        index = cut.sidecar.surgery.index[cut.sidecar.surgery.axes[f"{row.name}.weight"]["0"]]
        assert index.kept == sorted(norms.argsort(stable=True)[-row.after :].tolist())
    assert result.after["params"] < result.before["params"]


@pytest.mark.parametrize("method", STRUCTURED)
@pytest.mark.parametrize("scope", ["local", "global"])
def test_every_structured_method_removes_its_exact_count(resnet: Path, method: str, scope: str) -> None:
    result = prune(resnet, method=method, scope=scope, sparsity=0.4, dry_run=True)
    rows, rounding = result.rows, METHODS[method].rounding
    assert "fc" not in {row.name for row in rows}  # the network's outputs
    if scope == "global":
        assert sum(row.after for row in rows) == rounding(sum(row.before for row in rows), 0.4)
    else:
        assert [row.after for row in rows] == [rounding(row.before, 0.4) for row in rows]


def test_weights_momentum_and_counters_are_cut_alike(resnet: Path) -> None:
    prune(resnet, sparsity=0.5)
    cut = checkpoints.load(resnet.parent / "out.safetensors")
    for name, buffer in momentum(cut).items():
        assert torch.equal(buffer, 2 * cut.weights[name]), name
    assert cut.sidecar.optimizer
    assert all(checkpoints.to_tensor(s["step"]).item() == 7 for s in cut.sidecar.optimizer.state.values())


def test_the_cut_checkpoint_runs_and_its_cost_is_measured_anew(resnet: Path) -> None:
    result = prune(resnet, sparsity=0.5)
    cut = checkpoints.load(resnet.parent / "out.safetensors")
    network = checkpoints.build(cut)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert cut.sidecar.cost == measure.cost(network, torch.zeros(1, 3, 32, 32))
    assert result.after["params"] == sum(p.numel() for p in network.parameters())


def test_a_second_cut_is_recorded_in_the_dense_network(lenet: Path) -> None:
    prune(lenet, "once", sparsity=0.5)
    prune(lenet.parent / "once.safetensors", "twice", sparsity=0.5)
    dense, cut = checkpoints.load(lenet), checkpoints.load(lenet.parent / "twice.safetensors")
    name = next(n for n in cut.weights if n.endswith("weight"))
    weight = dense.weights[name]
    for axis, number in cut.sidecar.surgery.axes[name].items():
        weight = weight.index_select(int(axis), torch.tensor(cut.sidecar.surgery.index[number].kept))
    assert torch.equal(weight, cut.weights[name])


@pytest.mark.parametrize("method", UNSTRUCTURED)
@pytest.mark.parametrize("share", [0.5, 0.9, 0.9999])
def test_unstructured_masks_exactly_the_share(lenet: Path, method: str, share: float) -> None:
    result = prune(lenet, method=method, sparsity=share)
    masked = checkpoints.load(lenet.parent / "out.safetensors")
    whole = sum(row.before for row in result.rows)
    assert sum(row.after for row in result.rows) == whole - math.floor(whole * share + 1e-9)
    assert all(row.after >= 1 for row in result.rows)
    assert {n.rpartition(".")[2] for n in masked.sidecar.masks} == {"weight"}
    dense = checkpoints.load(lenet)
    for name, tensor in masked.weights.items():
        mask = (
            checkpoints.unpack_mask(masked.sidecar.masks[name]) if name in masked.sidecar.masks else torch.tensor(True)
        )
        assert torch.equal(tensor, dense.weights[name] * mask)
        assert torch.equal(momentum(masked)[name], 2 * tensor)


def test_magnitude_masks_the_smallest_weights_of_all(lenet: Path) -> None:
    prune(lenet, method="magnitude", sparsity=0.8)
    dense, masked = checkpoints.load(lenet), checkpoints.load(lenet.parent / "out.safetensors")
    masks = {n: checkpoints.unpack_mask(m) for n, m in masked.sidecar.masks.items()}
    gone = torch.cat([dense.weights[n][~m].abs() for n, m in masks.items()])
    kept = torch.cat([dense.weights[n][m].abs() for n, m in masks.items()])
    assert gone.max() <= kept.min()


def test_convolutions_alone_can_be_masked(resnet: Path) -> None:
    result = prune(resnet, method="magnitude", sparsity=0.5, tensors="conv")
    masks = checkpoints.load(resnet.parent / "out.safetensors").sidecar.masks
    assert "fc.weight" not in masks
    assert all(len(mask.shape) == 4 for mask in masks.values())
    assert sum(row.after for row in result.rows) * 2 in (whole := sum(r.before for r in result.rows), whole + 1)


def test_masks_accumulate_to_the_total_share(lenet: Path) -> None:
    prune(lenet, "half", method="magnitude", sparsity=0.5)
    result = prune(lenet.parent / "half.safetensors", "more", method="magnitude", sparsity=0.8)
    half, more = (checkpoints.load(lenet.parent / f"{n}.safetensors").sidecar.masks for n in ("half", "more"))
    for name, mask in more.items():
        assert not bool((checkpoints.unpack_mask(mask) & ~checkpoints.unpack_mask(half[name])).any())
    weights = sum(math.prod(mask.shape) for mask in more.values())
    assert sum(row.after for row in result.rows) == weights - math.floor(weights * 0.8 + 1e-9)


def test_a_target_that_masks_already_exceed_changes_nothing_and_says_so(lenet: Path) -> None:
    prune(lenet, "most", method="magnitude", sparsity=0.8)
    result = prune(lenet.parent / "most.safetensors", "less", method="magnitude", sparsity=0.5)
    most, less = (checkpoints.load(lenet.parent / f"{n}.safetensors") for n in ("most", "less"))
    assert most.sidecar.masks == less.sidecar.masks
    assert any("masked before" in note for note in result.notes)


def test_units_of_a_masked_network_and_weights_of_a_cut_one(lenet: Path) -> None:
    prune(lenet, "masked", method="magnitude", sparsity=0.5)
    prune(lenet.parent / "masked.safetensors", "masked_cut", sparsity=0.5)
    prune(lenet.parent / "masked_cut.safetensors", "again", method="magnitude", sparsity=0.9)
    for name in ("masked_cut", "again"):
        found = checkpoints.load(lenet.parent / f"{name}.safetensors")
        for tensor, mask in found.sidecar.masks.items():
            assert tuple(mask.shape) == tuple(found.weights[tensor].shape)
            assert bool((found.weights[tensor][~checkpoints.unpack_mask(mask)] == 0).all())
        checkpoints.build(found)(torch.zeros(1, *found.sidecar.cost.input))
    assert found.sidecar.masks
    assert found.sidecar.surgery.axes


AUXILIARY = """
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 8, 3), nn.Linear(8, 10)
        self.aux = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))

    def forward(self, x):
        y = self.conv(x)
        scores = self.fc(y.mean((2, 3)))
        return (scores, self.aux(y)) if self.training else scores
"""


def test_heads_of_train_mode_are_cut_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its batch norm of one value a channel runs on no batch of one."""
    (tmp_path / "auxiliary_net.py").write_text(AUXILIARY)
    monkeypatch.syspath_prepend(str(tmp_path))
    trust = ("auxiliary_net",)
    arch = Arch(name="auxiliary_net:Network")
    network = models.build(arch.name, {}, trust)
    cost = measure.cost(network, torch.zeros(1, 1, 8, 8))
    source = Checkpoint(network.state_dict(), Sidecar(arch=arch, cost=cost))
    cut = units.prune(source, Units("l1", "local"), Target(share=0.5), trust=trust).checkpoint
    scores, auxiliary = checkpoints.build(cut, trust=trust).train()(torch.randn(3, 1, 8, 8))
    assert scores.shape == auxiliary.shape == (3, 10)
    assert cut.weights["aux.3.weight"].shape == (10, 4)


def test_a_dry_run_writes_nothing_and_tells_the_same(resnet: Path, tmp_path: Path) -> None:
    told = run(
        PruneOptions(
            checkpoint=str(resnet), output=str(tmp_path / "x.safetensors"), method="l2", sparsity=0.3, dry_run=True
        )
    )
    assert not list(tmp_path.iterdir())
    done = prune(resnet, method="l2", sparsity=0.3)
    assert (told.rows, told.before, told.after) == (done.rows, done.before, done.after)
    assert "dry run" in told.text()
    assert told.data()["checkpoint"] is None


def test_the_text_names_each_pruned_layer_and_its_widths(lenet: Path) -> None:
    lines = [line.split() for line in prune(lenet, sparsity=0.5, only=("conv2",), dry_run=True).text().splitlines()]
    assert ["conv2", "16", "->", "8", "units"] in lines
    assert not any(line[0] in ("conv1", "nonzero") for line in lines)
    masked = prune(lenet, method="magnitude", sparsity=0.5, dry_run=True).text()
    assert "nonzero params" in masked


def test_the_options_import_no_torch() -> None:
    code = "import sys, prunecli.options.prune; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_history_says_what_was_done(lenet: Path) -> None:
    result = prune(lenet, sparsity=0.999)
    entry = checkpoints.load(lenet.parent / "out.safetensors").sidecar.history[-1]
    assert entry.command == "prune"
    assert entry.parent == checkpoints.load(lenet).sha256
    assert entry.options["sparsity"] == 0.999
    assert not {"output", "checkpoint", "device"} & entry.options.keys()
    assert entry.cost["params"] == result.after["params"]
    assert entry.notes


@pytest.mark.parametrize("structure", [units, weights])
def test_a_checkpoint_in_memory_is_left_alone(resnet: Path, structure: Any) -> None:
    source, untouched = checkpoints.load(resnet), checkpoints.load(resnet)
    how = Units("l1", "local") if structure is units else weights.Weights("magnitude", "global")
    structure.prune(source, how, Target(share=0.5))
    assert source.sidecar == untouched.sidecar
    for name, tensor in untouched.weights.items():
        assert torch.equal(source.weights[name], tensor), name


@pytest.mark.parametrize("method", ["random", "random-weights", "l1", "magnitude"])
def test_bytes_depend_on_input_options_and_seed_alone(lenet: Path, method: str, tmp_path: Path) -> None:
    def written(folder: str, seed: int) -> bytes:
        (tmp_path / folder).mkdir(exist_ok=True)
        out = tmp_path / folder / "x.safetensors"
        run(PruneOptions(checkpoint=str(lenet), output=str(out), method=method, sparsity=0.5, seed=seed))
        return out.read_bytes() + out.with_suffix(".json").read_bytes()

    first = written("a", 3)
    assert first == written("b", 3)
    assert first != written("a", 4)


def test_the_input_may_be_the_output(tmp_path: Path) -> None:
    path = write(tmp_path)
    before = checkpoints.load(path).sha256
    run(PruneOptions(checkpoint=str(path), output=str(path), method="l1", sparsity=0.5))
    assert checkpoints.load(path).sidecar.history[-1].parent == before
