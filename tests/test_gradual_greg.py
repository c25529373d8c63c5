"""GReg: the growth of its penalty, what it picks, its phases, and what is left of filters before they are removed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from gradual import KillAt, Killed, Listening, check_resumed, gradients, live, prune, train
from torch import Tensor

import prunecli
from prunecli import checkpoint as checkpoints
from prunecli.allocate.counts import prune_ceil
from prunecli.checkpoint import unpack_mask
from prunecli.errors import PruneError, TargetError, UsageError
from prunecli.methods.gradual.parts import Part, pick
from prunecli.options.prune import PruneOptions
from prunecli.options.train import FinetuneOptions, TrainOptions
from prunecli.progress import Silent
from prunecli.training import Run

FAST = {"delta": 0.25, "k_u": 2, "k_s": 3}
FAST_ARG = ("delta=0.25", "k_u=1", "k_s=3")
FAST2_ARG = ("tau_pick=0.5", "delta_pick=0.25", *FAST_ARG)
PHASES2 = {"tau_pick": 0.5, "delta_pick": 0.25, **FAST}


def penalty(run: Run, step: int) -> dict[str, Tensor]:
    """What the method adds to the gradients at a step, by parameter."""
    run.training.epoch, run.training.step = divmod(step, run.steps)
    gradients(run)
    run.hook.after_backward(run)
    return {name: p.grad for name, p in run.network.named_parameters() if p.grad is not None}


def smallest(weight: Tensor, share: float) -> Tensor:
    """True for the filters of least L1 norm, [filters, 1, 1, 1]."""
    norms = weight.detach().abs().flatten(1).sum(1)
    least = sorted(range(len(norms)), key=lambda i: float(norms[i]))[: len(norms) - prune_ceil(len(norms), share)]
    return torch.isin(torch.arange(len(norms)), torch.tensor(least)).view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("n", "share", "kept"), [(10, 0.9, 1), (10, 0.3, 7), (10, 0.25, 7), (10, 0.99, 1), (4, 0.5, 2), (1, 0.5, 1)]
)
def test_a_layer_loses_its_share_rounded_up_and_never_all(n: int, share: float, kept: int) -> None:
    assert prune_ceil(n, share) == kept


def test_the_penalty_is_lambda_w_on_the_weakest_filters_and_grows_every_k_u_steps(tmp_path: Path) -> None:
    run = live(tmp_path, "greg1", {**FAST, "stop_ratio": 0}, {"sparsity": 0.7}, lr=0.05)
    chosen = {
        f"{layer}.weight": smallest(run.network.get_parameter(f"{layer}.weight"), 0.7) for layer in ("conv2", "conv3")
    }
    factors = [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]  # tau = 1 acts for k_u + k_s steps
    for step, factor in enumerate(factors):
        for name, gradient in penalty(run, step).items():
            weight = run.network.get_parameter(name).detach()
            expected = factor * weight * chosen[name] if name in chosen else torch.zeros_like(weight)
            assert torch.allclose(gradient, expected), (step, name)
    assert run.hook.state.held == 8
    assert run.hook.epochs(run.steps) == 2  # 11 steps of 6 an epoch


def test_a_run_ends_with_the_epoch_in_which_the_penalty_has_done_its_work(tmp_path: Path) -> None:
    run = live(tmp_path, "greg1", FAST, {"sparsity": 0.7})
    lengths = []
    for step in range(3 * run.steps):
        penalty(run, step)
        run.training.step += 1
        if run.training.step == run.steps:
            run.hook.after_epoch(run)
            lengths.append(run.training.epochs)
    assert lengths == [4, 2, 3]  # 8 steps of growth and 3 at its end are 2 epochs of 6


def vanish(run: Run, layer: str, share: float) -> None:
    weight = run.network.get_parameter(f"{layer}.weight")
    weight.data[smallest(weight, share).flatten()] *= 1e-5


@pytest.mark.parametrize("method", ["greg1", "greg2"])
def test_growth_ends_early_where_the_ratio_of_norms_is_reached(tmp_path: Path, method: str) -> None:
    run = live(tmp_path, method, PHASES2 if method == "greg2" else FAST, {"sparsity": 0.7})
    vanish(run, "conv2", 0.7)
    for step in range(5):
        penalty(run, step)
    state = run.hook.state
    if method == "greg1":  # all layers together
        assert state.stopped == {}
    else:  # each layer by itself, once filters are picked after 2 increments
        assert state.stopped == {"conv2.weight": 2}
        assert torch.count_nonzero(penalty(run, 5)["conv2.weight"]) > 0
    vanish(run, "conv3", 0.7)
    penalty(run, 6)
    assert state.held == 6
    assert state.stopped == {"conv2.weight": 3 if method == "greg1" else 2, "conv3.weight": 3}
    strength = {"greg1": (0.75, 0.75), "greg2": (0.5, 0.75)}[method]
    for layer, factor in zip(("conv2", "conv3"), strength, strict=True):
        weight = run.network.get_parameter(f"{layer}.weight")
        gone = run.hook.tensors["pruned"][f"{layer}.weight"]
        assert torch.allclose(penalty(run, 7)[f"{layer}.weight"] * gone, factor * weight.detach() * gone)


def test_greg2_penalises_all_filters_until_it_picks_and_then_rewards_those_that_stay(tmp_path: Path) -> None:
    run = live(tmp_path, "greg2", {**PHASES2, "stop_ratio": 0}, {"sparsity": 0.7}, weight_decay=0.125)
    for step, factor in enumerate([0.25, 0.25, 0.5, 0.5]):
        assert run.hook.tensors.get("pruned", {}) == {}
        gradient, weight = penalty(run, step)["conv3.weight"], run.network.conv3.weight
        assert torch.allclose(gradient, factor * weight.detach())
    run.network.conv3.weight.data = run.network.conv3.weight.data.flip(0)  # what is picked is what is weak by then
    for step, factor in enumerate([0.75, 0.75, 1.0, 1.0, 1.0], 4):
        gradient, weight = penalty(run, step)["conv3.weight"], run.network.conv3.weight.detach()
        expected = torch.where(smallest(weight, 0.7), factor, -0.125) * weight
        assert torch.allclose(gradient, expected), step
    assert run.hook.state.held == 8


def test_of_equal_filters_the_first_go_and_the_largest_where_it_is_asked(tmp_path: Path) -> None:
    run = live(tmp_path, "greg1", FAST, {"sparsity": 0.5})
    weight = torch.nn.Parameter(torch.tensor([2.0, -1.0, 1.0, -1.0, 3.0]).view(5, 1))
    part = Part("w", 0.4, {"w": weight})
    found = {how: pick(run, [part], how, 0, Silent())["w"].flatten().tolist() for how in ("l1", "max", "random")}
    assert found["l1"] == [False, True, True, False, False]
    assert found["max"] == [True, False, False, False, True]
    assert sum(found["random"]) == 2
    assert found["random"] == pick(run, [part], "random", 0, Silent())["w"].flatten().tolist()


def test_optimal_brain_damage_ranks_shares_of_squared_gradients_over_all_layers(tmp_path: Path) -> None:
    run = live(tmp_path, "greg1", {**FAST, "pick": "obd", "samples": 3}, {"sparsity": 0.8}, seed=3)
    run.network.eval()
    order = prunecli.data.Order(3, 0)
    x, y = next(iter(run.data.train.batches(64, order=order)))
    scores = []
    weights = {name: run.network.get_parameter(name) for name in ("conv2.weight", "conv3.weight")}
    squares = {name: torch.zeros_like(w) for name, w in weights.items()}
    for i in range(3):
        run.network.zero_grad()
        torch.nn.functional.cross_entropy(run.network(x[i : i + 1]), y[i : i + 1]).backward()
        for name, w in weights.items():
            squares[name] += w.grad.square() / 3
    for name, w in weights.items():
        units = [float((squares[name][i] * w.detach()[i] ** 2).sum()) for i in range(len(w))]
        scores += [(score / sum(units), name, i) for i, score in enumerate(units)]
    lowest = {(name, i) for _, name, i in sorted(scores)[: len(scores) - prune_ceil(len(scores), 0.8)]}
    pruned = run.hook.tensors["pruned"]
    assert {(n, i) for n, mask in pruned.items() for i in mask.flatten().nonzero().flatten().tolist()} == lowest
    assert len({name for name, _ in lowest}) == 2
    pick(run, run.hook.parts, "obd", 3, say := Listening())
    assert say.statuses[-1] == "picking what goes  example 3/3"


@pytest.mark.parametrize(
    ("method", "arguments", "steps"),
    [
        ("greg1", FAST_ARG, 2),  # while it grows
        ("greg1", ("delta=0.5", "k_u=2", "k_s=5"), 3),  # between two increments
        ("greg1", ("delta=0.5", "k_u=2", "k_s=5"), 7),  # while it acts in full
        ("greg1", ("structure=weights", *FAST_ARG), 2),
        ("greg2", FAST2_ARG, 1),  # while it grows on all
        ("greg2", FAST2_ARG, 3),  # once filters are picked
        ("greg2", FAST2_ARG, 6),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    tmp_path: Path, method: str, arguments: tuple[str, ...], steps: int
) -> None:
    check_resumed(tmp_path, steps, method=method, sparsity=0.7, method_arg=arguments)


def test_filters_have_vanished_before_they_are_removed_and_accuracy_stays(tmp_path: Path) -> None:
    train(tmp_path, epochs=6, batch_size=64, lr=0.02)
    arguments = ("delta=0.02", "tau=10", "k_u=1", "k_s=20")
    made = prune(
        tmp_path / "x.safetensors", say := Listening(), method="greg1", sparsity=0.5, epochs=None, batch_size=64,
        lr=0.02, method_arg=arguments,
    )  # fmt: skip
    assert not any("small" in line for line in say.lines)
    assert float(re.search(r"outputs within (\S+)%", say.lines[-1])[1]) < 0.5
    metrics = made.sidecar.metrics
    told, before = metrics.curve[-1].method, metrics.curve[-1].score
    assert told["pruned_norm"] < told["kept_norm"] / 1000
    assert told["ratio/conv2"] > 1000
    assert len(metrics.curve) < 24  # of the 24 that growth up to tau and k_s steps would take
    assert before
    assert metrics.last
    assert abs(metrics.last.values["top1"] - before["top1"]) <= 1 / 300
    assert [made.weights[f"conv{i}.weight"].shape[0] for i in (1, 2, 3)] == [6, 8, 60]
    assert made.sidecar.training
    assert made.sidecar.training.epochs == len(metrics.curve)
    prunecli.finetune(
        FinetuneOptions(
            checkpoint=str(made.path or tmp_path / "pruned.safetensors"),
            output=str(tmp_path / "f.safetensors"),
            epochs=1,
            threads=1,
        )
    )
    tuned = checkpoints.load(tmp_path / "f.safetensors")
    assert tuned.weights["conv2.weight"].shape == made.weights["conv2.weight"].shape


def test_a_snapshot_behind_an_early_end_is_told(tmp_path: Path) -> None:
    options = {"arch": "lenet5", "data": "digits", "batch_size": 256, "lr": 0.05, "threads": 1, "epochs": 4}
    path = tmp_path / "x.safetensors"
    made = prunecli.train(
        TrainOptions(**options, output=str(path), method="greg1", sparsity=0.3, method_arg=FAST_ARG, keep="1,4")
    )
    assert made.notes == ("--keep 4: no snapshot, the run ended early with epoch 2",)
    assert made.notes[0] in made.text()
    assert [p.name for p in sorted(tmp_path.glob("*.safetensors"))] == ["x.epoch1.safetensors", "x.safetensors"]


def test_filters_that_have_not_vanished_are_named_at_their_removal(tmp_path: Path) -> None:
    train(tmp_path, say := Listening(), method="greg1", sparsity=0.3, method_arg=FAST_ARG)
    warning, pruned = say.lines[-2:]
    assert re.search(r"not yet small beside what stays: conv2 \(1/\d.*\), conv3 .*k_s", warning)
    assert float(re.search(r"outputs within (\S+)%", pruned)[1]) > 0.5


def test_single_weights_are_masked_in_all_layers_but_the_first(tmp_path: Path) -> None:
    masks = train(tmp_path, method="greg1", sparsity=0.3, method_arg=("structure=weights", *FAST_ARG)).sidecar.masks
    assert {name: mask.kept for name, mask in masks.items()} == {
        f"{layer}.weight": prune_ceil(count, 0.3)
        for layer, count in (("conv2", 16 * 150), ("conv3", 120 * 400), ("fc1", 84 * 120), ("fc2", 840))
    }


def test_in_residual_networks_the_first_convolutions_of_blocks_are_pruned_alone(tmp_path: Path) -> None:
    run = live(tmp_path, "greg1", FAST, {"sparsity": 0.5}, arch="resnet20")
    blocks = {f"layer{stage}.{block}.conv1.weight" for stage in (1, 2, 3) for block in range(3)}
    assert run.hook.tensors["pruned"].keys() == blocks
    more = live(
        tmp_path, "greg1", FAST, {"ratios": {"layer1.*.conv1": 0.5, "fc": 0.5, "layer2.0.conv1": 0.25}}, arch="resnet20"
    )
    assert {name: int(mask.sum()) for name, mask in more.hook.tensors["pruned"].items()} == {
        **{f"layer1.{block}.conv1.weight": 8 for block in range(3)}, "layer2.0.conv1.weight": 8,
    }  # fmt: skip


def base_and(folder: Path, **options: Any) -> Path:
    """A trained network, and a file that one-shot pruning makes of it."""
    train(folder)
    made = folder / "other.safetensors"
    prunecli.prune(PruneOptions(checkpoint=str(folder / "x.safetensors"), output=str(made), no_eval=True, **options))
    return made


def test_indices_of_a_cut_checkpoint_are_what_goes(tmp_path: Path) -> None:
    other = base_and(tmp_path, method="random", sparsity=0.5)
    made = prune(tmp_path / "x.safetensors", method="greg1", method_arg=(f"indices={other}", *FAST_ARG))
    cut = checkpoints.load(other).sidecar.surgery
    assert made.sidecar.surgery.axes == cut.axes
    for name, axes in cut.axes.items():
        for axis, number in axes.items():
            assert made.sidecar.surgery.index[made.sidecar.surgery.axes[name][axis]] == cut.index[number]


def test_a_resumed_run_knows_the_file_of_indices_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "go.json").write_text('{"conv2": [0, 5]}')
    options = TrainOptions(
        arch="lenet5", data="digits", output=str(tmp_path / "x.safetensors"), epochs=2, lr=0.05, threads=1,
        method="greg1", method_arg=(f"indices={tmp_path / 'go.json'}", *FAST_ARG), batch_size=256, save_every=1,
    )  # fmt: skip
    with pytest.raises(Killed):
        prunecli.train(options, KillAt(3))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.json").write_text('{"conv2": [0, 6]}')
    resumed = dataclasses.replace(options, resume=True)
    with pytest.raises(UsageError, match=r"indices [0-9a-f]{64} there, [0-9a-f]{64} now"):
        prunecli.train(dataclasses.replace(resumed, method_arg=("indices=other.json", *FAST_ARG)))
    (tmp_path / "go.json").rename(tmp_path / "moved.json")
    with pytest.raises(UsageError, match="No such file"):
        prunecli.train(resumed)
    prunecli.train(dataclasses.replace(resumed, method_arg=("indices=moved.json", *FAST_ARG)))
    snapshot = dataclasses.replace(options, method_arg=("indices=moved.json", *FAST_ARG), keep="1")
    prunecli.train(snapshot)
    rest = FinetuneOptions(checkpoint=str(tmp_path / "x.epoch1.safetensors"), output=str(tmp_path / "rest.safetensors"))
    prunecli.finetune(rest)
    assert checkpoints.load(rest.output).weights["conv2.weight"].shape[0] == 14
    made = checkpoints.load(tmp_path / "x.safetensors")
    assert made.weights["conv2.weight"].shape[0] == 14
    digest = hashlib.sha256((tmp_path / "moved.json").read_bytes()).hexdigest()
    assert made.sidecar.history[-1].options["settings"]["indices"] == digest


def test_indices_of_a_network_that_is_cut_already_are_those_of_the_dense_one(tmp_path: Path) -> None:
    other = base_and(tmp_path, method="l1", sparsity=0.5)
    first = tmp_path / "first.safetensors"
    prunecli.prune(
        PruneOptions(
            checkpoint=str(tmp_path / "x.safetensors"), output=str(first), method="l1", sparsity=0.25, no_eval=True
        )
    )
    made = prune(first, method="greg1", method_arg=(f"indices={other}", *FAST_ARG))
    assert made.sidecar.surgery == checkpoints.load(other).sidecar.surgery


def test_indices_of_a_masked_checkpoint_are_what_goes(tmp_path: Path) -> None:
    other = base_and(tmp_path, method="magnitude", sparsity=0.5)
    made = prune(
        tmp_path / "x.safetensors", method="greg1", method_arg=(f"indices={other}", "structure=weights", *FAST_ARG)
    )
    wanted = checkpoints.load(other).sidecar.masks
    assert made.sidecar.masks.keys() == wanted.keys()
    for name, mask in wanted.items():
        assert torch.equal(unpack_mask(made.sidecar.masks[name]), unpack_mask(mask)), name


def test_a_table_lists_the_filters_that_go(tmp_path: Path) -> None:
    table = tmp_path / "go.json"
    table.write_text(json.dumps({"conv2": [0, 5], "fc1": [83]}))
    run = live(tmp_path, "greg1", {**FAST, "indices": str(table)}, {})
    pruned = run.hook.tensors["pruned"]
    assert {n: m.flatten().nonzero().flatten().tolist() for n, m in pruned.items()} == {
        "conv2.weight": [0, 5],
        "fc1.weight": [83],
    }


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('{"conv9": [1]}', "conv2"),
        ('{"conv2": [16]}', "0 to 15"),
        ('{"conv2": [0.5]}', "int"),
        ("[1, 2]", "object"),
        ("{", "the filters that go"),
        ("{}", "nothing of this network"),
        (json.dumps({"conv2": list(range(16))}), "nothing of conv2"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, table: str, words: str) -> None:
    (tmp_path / "go.json").write_text(table)
    with pytest.raises(PruneError) as error:
        live(tmp_path, "greg1", {**FAST, "indices": str(tmp_path / "go.json")}, {})
    assert words in error.value.message + error.value.hint


def test_indices_of_another_network_are_refused(tmp_path: Path) -> None:
    other = base_and(tmp_path, method="l1", sparsity=0.5)
    (tmp_path / "b").mkdir()
    with pytest.raises(UsageError, match="was of shape"):
        live(tmp_path / "b", "greg1", {**FAST, "indices": str(other)}, {}, arch="resnet20")


def test_filters_that_several_layers_share_go_together(tmp_path: Path) -> None:
    (tmp_path / "go.json").write_text('{"conv1": [1]}')
    with pytest.raises(UsageError, match="together"):
        live(tmp_path, "greg1", {**FAST, "indices": str(tmp_path / "go.json")}, {}, arch="resnet20")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 1}, "--epochs 2"),
        ({"sparsity": None}, "--sparsity"),
        ({"ratios": "conv2=0.5", "sparsity": None, "method_arg": ("pick=obd",)}, "--sparsity"),
        ({"method_arg": ("indices=a.json",)}, "drop --sparsity"),
        ({"sparsity": None, "method_arg": ("indices=none.json",)}, "No such file"),
        ({"method_arg": ("pick=best",)}, "pick"),
        ({"method_arg": ("delta=0",)}, "delta"),
        ({"method": "greg2", "method_arg": ("tau_pick=2",)}, "above tau"),
        ({"method": "greg2", "method_arg": ("pick=obd",)}, "no such setting"),
        ({"only": ("nothing",)}, "nothing"),
        ({"sparsity": 1.5}, "--sparsity"),
        ({"skip": ("conv2", "conv3")}, "--only"),
        ({"max_macs": "50%"}, "--max-macs"),
    ],
)
def test_what_it_does_not_take_is_refused_before_training(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    given = {"method": "greg1", "sparsity": 0.5} | options
    given["method_arg"] = (*FAST_ARG, *given.get("method_arg", ()))
    with pytest.raises((UsageError, TargetError)) as error:
        train(tmp_path, **given)
    assert words in error.value.message + error.value.hint
    assert not list(tmp_path.iterdir())
