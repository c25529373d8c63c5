"""`prune` end to end on checkpoint files: what goes is exactly what was asked for, and nothing else is lost."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunecli import checkpoint as checkpoints
from prunecli import measure, models, surgery, training
from prunecli.checkpoint import Checkpoint
from prunecli.commands.prune import run
from prunecli.commands.pruned import PruneResult
from prunecli.errors import Interrupted, PruneError, TargetError, UsageError
from prunecli.methods import METHODS
from prunecli.options import Recipe, parse_amount
from prunecli.options.prune import PruneOptions
from prunecli.sidecar import Arch, Optimizer, ParamGroup, Sidecar

STRUCTURED = [name for name, method in METHODS.items() if method.structure == "units"]
UNSTRUCTURED = [name for name, method in METHODS.items() if method.structure == "weights"]


def write(folder: Path, name: str = "lenet5", **args: Any) -> Path:
    """A checkpoint of a network with random weights whose momentum is twice the weight, so cuts can be followed."""
    torch.manual_seed(1)
    network = models.build(name, args)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
    shape = models.input_shape(name, args)
    assert shape
    state = {
        n: {"momentum_buffer": checkpoints.to_array(2 * p.detach()), "step": checkpoints.to_array(torch.tensor(7.0))}
        for n, p in network.named_parameters()
    }
    optimizer = Optimizer(
        name="SGD", groups=[ParamGroup(params=list(state), options={"lr": 0.1, "momentum": 0.9})], state=state
    )
    sidecar = Sidecar(
        arch=Arch(name=name, args=args), cost=measure.cost(network, torch.zeros(1, *shape)), optimizer=optimizer
    )
    path = folder / f"{name}.safetensors"
    checkpoints.save(Checkpoint(network.state_dict(), sidecar), path)
    return path


def prune(source: Path, output: str = "out", **options: Any) -> PruneResult:
    """Run the command beside its input, by default with `l1`."""
    options = {"method": None if "preset" in options else "l1"} | options
    return run(PruneOptions(checkpoint=str(source), output=str(source.parent / f"{output}.safetensors"), **options))


def after(result: PruneResult) -> dict[str, int]:
    return {row.name: row.after for row in result.rows}


def momentum(checkpoint: Checkpoint) -> dict[str, Tensor]:
    assert checkpoint.sidecar.optimizer
    return {n: checkpoints.to_tensor(s["momentum_buffer"]) for n, s in checkpoint.sidecar.optimizer.state.items()}


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("lenet"))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("resnet"), "resnet20", shortcut="projection")


# ---- what goes


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


# ---- amounts


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize(("max_macs", "max_params"), [("50%", None), (None, "60k"), ("20M", "40%")])
def test_budgets_are_met_by_a_network_that_nothing_can_be_added_to(
    resnet: Path, scope: str, round_to: int, max_macs: str | None, max_params: str | None
) -> None:
    result = prune(resnet, scope=scope, round_to=round_to, dry_run=True, max_macs=max_macs, max_params=max_params)
    macs = parse_amount(max_macs or "100%", "").of(result.before["macs"])
    params = parse_amount(max_params or "100%", "").of(result.before["params"])
    dense = checkpoints.load(resnet)
    structure = surgery.trace(checkpoints.build(dense), torch.zeros(1, 3, 32, 32))

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
    assert {note.split()[0] for note in result.notes if "keeps one unit" in note} == {row.name for row in rows}


@pytest.mark.parametrize(
    "target", [{"sparsity": 1.0}, {"sparsity": -0.1}, {"sparsity": math.nan}, {"ratios": "conv1=1"}]
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
    ],
)
def test_options_that_mean_nothing_are_usage_errors(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        PruneOptions(**{"checkpoint": "c", "output": "o.safetensors", "method": "l1"} | options)


# ---- which layers


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


@pytest.mark.parametrize("option", [{"only": ("layr1.*",)}, {"skip": ("layr1.*",)}])
@pytest.mark.parametrize("method", ["l1", "magnitude"])
def test_a_pattern_that_names_no_layer_is_refused(resnet: Path, option: dict[str, Any], method: str) -> None:
    with pytest.raises(TargetError, match="layr1") as caught:
        prune(resnet, "never", method=method, sparsity=0.5, **option)
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


# ---- what is written


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


# ---- rounds


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows its data."""
    path = write(tmp_path_factory.mktemp("digits"))
    checkpoint = checkpoints.load(path)
    size = tuple(checkpoint.sidecar.cost.input)
    checkpoint.sidecar.data = training.open_data(None, Recipe(data="digits"), size).info  # type: ignore[arg-type]
    assert checkpoint.sidecar.optimizer
    checkpoint.sidecar.optimizer.state = {}
    checkpoints.save(checkpoint, path)
    return path


def test_the_result_is_scored_unless_told_not_to(digits: Path) -> None:
    score = prune(digits, sparsity=0.5).data()["score"]
    assert score
    assert 0 <= score["top1"] <= 1
    assert prune(digits, sparsity=0.5, no_eval=True).data()["score"] is None


@pytest.mark.parametrize(("method", "schedule"), [("magnitude", "geometric"), ("l1", "linear"), ("l1", "geometric")])
def test_rounds_end_at_the_target(digits: Path, method: str, schedule: str) -> None:
    result = prune(digits, method=method, sparsity=0.7, rounds=3, round_schedule=schedule, finetune_epochs=1)
    at_once = prune(digits, "once", method=method, sparsity=0.7, no_eval=True)
    assert result.after["nonzero_params"] == at_once.after["nonzero_params"]
    assert [(r.before, r.after) for r in result.rows if r.what == "units"] == [
        (r.before, r.after) for r in at_once.rows if r.what == "units"
    ]
    done = checkpoints.load(digits.parent / "out.safetensors")
    assert done.sidecar.training
    assert done.sidecar.training.epoch == 1
    assert not done.sidecar.training.method
    assert [step.command for step in done.sidecar.history] == ["prune"]
    for name, mask in done.sidecar.masks.items():
        assert bool((done.weights[name][~checkpoints.unpack_mask(mask)] == 0).all())
    assert not list(digits.parent.glob("*.partial.*"))


def test_rounds_of_a_budget_meet_it(digits: Path) -> None:
    result = prune(digits, max_macs="40%", rounds=2, finetune_epochs=1, scope="global")
    assert 0.35 * result.before["macs"] < result.after["macs"] <= 0.4 * result.before["macs"]


def test_an_impossible_last_round_fails_before_the_first(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(TargetError):
        prune(digits, max_params="3", rounds=5, finetune_epochs=3)


def test_fine_tuning_without_data_is_refused(lenet: Path) -> None:
    with pytest.raises(PruneError, match="data"):
        prune(lenet, sparsity=0.5, finetune_epochs=1)


@pytest.mark.parametrize("method", ["l1", "magnitude"])
def test_an_interrupted_round_resumes_to_the_same_bytes(
    digits: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"method": method, "sparsity": 0.6, "rounds": 3, "finetune_epochs": 1}
    straight = prune(digits, "straight", **options).checkpoint.sha256
    fit, calls = training.fit, []

    def interrupted(
        checkpoint: Checkpoint, data: Any, execution: Any, *, saving: training.Saving, **rest: Any
    ) -> Checkpoint:
        calls.append(checkpoint)
        if len(calls) == 2:
            checkpoints.save(checkpoint, saving.partial)
            raise Interrupted("stopped", "go on", 15)
        return fit(checkpoint, data, execution, saving=saving, **rest)

    monkeypatch.setattr(training, "fit", interrupted)
    with pytest.raises(Interrupted):
        prune(digits, "resumed", **options)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="--resume"):
        prune(digits, "resumed", resume=True, **options | {"sparsity": 0.5})
    resumed = prune(digits, "resumed", resume=True, **options)
    assert resumed.checkpoint.sha256 == straight
    lines = [(digits.parent / f"{n}.json").read_text().replace(n, "X").splitlines() for n in ("straight", "resumed")]
    assert [a for a, b in zip(*lines, strict=True) if a != b and "checksum" not in a] == []
    assert not list(digits.parent.glob("*.partial.*"))
