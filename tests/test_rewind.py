"""Rewinding: the weights, optimizer and position that each regime sets, cut or masked; and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

import prunecli
from prunecli import checkpoint as checkpoints
from prunecli.checkpoint import Checkpoint, to_tensor, unpack_mask
from prunecli.errors import DamagedError, UsageError
from prunecli.options.prune import PruneOptions
from prunecli.options.rewind import RewindOptions
from prunecli.options.train import FinetuneOptions, TrainOptions
from prunecli.retraining.snapshot import cut_snapshot, remaining
from prunecli.sidecar import IndexSet, Schedule, Surgery

KINDS = ("cut", "masked", "both")
EPOCHS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained LeNet-5 with snapshots; cut, masked, and cut then masked."""
    where = tmp_path_factory.mktemp("rewind")

    def file(name: str) -> str:
        return str(where / f"{name}.safetensors")

    def prune(source: str, output: str, method: str, share: float) -> None:
        options = {"checkpoint": file(source), "output": file(output)}
        prunecli.prune(PruneOptions(**options, method=method, sparsity=share, no_eval=True))

    train = TrainOptions(
        arch="lenet5", data="digits", epochs=EPOCHS, batch_size=256, schedule="multistep", milestones="1,2", lr=0.1,
        keep="0,1", threads=1, seed=3, output=file("base"),
    )  # fmt: skip
    prunecli.train(train)
    prunecli.train(dataclasses.replace(train, optimizer="adam", lr=0.01, keep="2", output=file("adam")))
    prune("base", "cut", "l1", 0.5)
    prune("base", "masked", "magnitude", 0.8)
    prune("cut", "both", "magnitude", 0.5)
    prune("adam", "adamcut", "l1", 0.5)
    return where


def load(folder: Path, name: str) -> Checkpoint:
    return checkpoints.load(folder / f"{name}.safetensors")


def rewind(folder: Path, name: str, to: str | None = None, **options: object) -> Checkpoint:
    output = folder / f"rewound-{name}.safetensors"
    snapshot = None if to is None else str(folder / f"{to}.safetensors")
    given = RewindOptions(checkpoint=str(folder / f"{name}.safetensors"), to=snapshot, output=str(output), **options)  # type: ignore[arg-type]
    prunecli.rewind(given)
    return checkpoints.load(output)


def expected(snapshot: dict[str, Tensor], pruned: Checkpoint) -> dict[str, Tensor]:
    """The dense tensors indexed one axis after the other by the recorded indices, masked weights zeroed."""
    result = {}
    for name, tensor in snapshot.items():
        for axis, number in pruned.sidecar.surgery.axes.get(name, {}).items():
            kept = pruned.sidecar.surgery.index[number].kept
            tensor = torch.stack([tensor.select(int(axis), i) for i in kept], int(axis))
        if name in pruned.sidecar.masks:
            tensor = torch.where(unpack_mask(pruned.sidecar.masks[name]), tensor, 0.0)
        result[name] = tensor
    return result


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def momentum(checkpoint: Checkpoint) -> dict[str, Tensor]:
    assert checkpoint.sidecar.optimizer
    return {name: to_tensor(s["momentum_buffer"]) for name, s in checkpoint.sidecar.optimizer.state.items()}


def position(checkpoint: Checkpoint) -> tuple[int, int, int]:
    assert checkpoint.sidecar.training
    return checkpoint.sidecar.training.epoch, checkpoint.sidecar.training.step, checkpoint.sidecar.training.epochs


@pytest.mark.parametrize("kind", KINDS)
def test_weight_rewinding_takes_weights_momentum_and_position_of_the_snapshot(folder: Path, kind: str) -> None:
    snapshot, pruned, result = load(folder, "base.epoch1"), load(folder, kind), rewind(folder, kind, "base.epoch1")
    assert equal(result.weights, expected(snapshot.weights, pruned))
    assert equal(momentum(result), expected(momentum(snapshot), pruned))
    assert len(momentum(result)) == 10
    assert any(bool(tensor.any()) for tensor in momentum(result).values())
    assert position(result) == (1, 0, EPOCHS)
    assert result.sidecar.training == snapshot.sidecar.training
    assert (result.sidecar.masks, result.sidecar.surgery) == (pruned.sidecar.masks, pruned.sidecar.surgery)


def test_adam_keeps_its_moments_and_its_step_counter(folder: Path) -> None:
    result = rewind(folder, "adamcut", "adam.epoch2")
    shapes = {name: list(tensor.shape) for name, tensor in load(folder, "adamcut").weights.items()}
    state = result.sidecar.optimizer.state  # type: ignore[union-attr]
    assert {name: entries["exp_avg_sq"].shape for name, entries in state.items()} == shapes
    assert {float(to_tensor(entries["step"])) for entries in state.values()} == {2 * 6.0}  # 1437 images, batches of 256


@pytest.mark.parametrize("kind", KINDS)
def test_lottery_starts_over_from_the_initialisation(folder: Path, kind: str) -> None:
    result = rewind(folder, kind, "base.epoch0", regime="lottery")
    assert equal(result.weights, expected(load(folder, "base.epoch0").weights, load(folder, kind)))
    assert position(result) == (0, 0, EPOCHS)
    assert result.sidecar.optimizer.state == {}  # type: ignore[union-attr]


def test_a_fresh_optimizer_may_be_wanted_for_weight_rewinding(folder: Path) -> None:
    result = rewind(folder, "cut", "base.epoch1", fresh=True)
    assert position(result) == (1, 0, EPOCHS)
    assert result.sidecar.optimizer.state == {}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "to, options, epoch", [(None, {}, 0), (None, {"from_epoch": 2}, 2), ("base.epoch1", {"regime": "lr-rewind"}, 1)]
)
def test_lr_rewinding_keeps_the_weights_and_sets_the_schedule_back(
    folder: Path, to: str | None, options: dict[str, object], epoch: int
) -> None:
    result = rewind(folder, "cut", to, **options)
    assert equal(result.weights, load(folder, "cut").weights)
    assert position(result) == (epoch, 0, EPOCHS)
    training = result.sidecar.training
    assert training is not None
    assert (training.lr, training.schedule.milestones) == (0.1, [1, 2])
    assert result.sidecar.optimizer.state == {}  # type: ignore[union-attr]


def test_fine_tuning_runs_at_the_last_rate_of_the_original_run(folder: Path) -> None:
    result = rewind(folder, "cut", "base.epoch1", regime="finetune")
    assert equal(result.weights, load(folder, "cut").weights)
    training = result.sidecar.training
    assert training is not None
    assert training.lr == pytest.approx(0.001)  # 0.1, a tenth of it twice
    assert training.schedule == Schedule(kind="constant")
    assert position(result) == (0, 0, EPOCHS - 1)  # as long as weight rewinding would train
    assert position(rewind(folder, "cut", regime="finetune", epochs=40)) == (0, 0, 40)


def test_carry_brings_the_pruned_networks_own_momentum(folder: Path) -> None:
    for regime in ("finetune", "lr-rewind"):
        result = rewind(folder, "masked", regime=regime, carry=True)
        assert equal(momentum(result), momentum(load(folder, "masked")))


def test_the_original_run_is_found_behind_later_fine_tuning(folder: Path) -> None:
    files = {"checkpoint": str(folder / "cut.safetensors"), "output": str(folder / "tuned.safetensors")}
    prunecli.finetune(FinetuneOptions(**files, epochs=1, lr=0.0005, batch_size=64))
    training = rewind(folder, "tuned").sidecar.training
    assert training is not None
    assert (training.epochs, training.lr, training.batch_size) == (EPOCHS, 0.1, 256)


@pytest.mark.parametrize("kind", KINDS)
def test_finetune_goes_on_from_the_rewound_position(folder: Path, kind: str) -> None:
    rewind(folder, kind, "base.epoch1")
    output = str(folder / f"again-{kind}.safetensors")
    result = prunecli.finetune(
        FinetuneOptions(checkpoint=str(folder / f"rewound-{kind}.safetensors"), output=output, threads=1)
    )
    curve = result.checkpoint.sidecar.metrics.curve
    assert [entry.epoch for entry in curve] == [2, 3]
    assert [entry.lr for entry in curve] == pytest.approx([0.01, 0.001])
    for name, mask in result.checkpoint.sidecar.masks.items():
        assert not result.checkpoint.weights[name][~unpack_mask(mask)].any()


def test_rewinding_an_unpruned_network_gives_the_snapshot_itself(folder: Path) -> None:
    snapshot, result = load(folder, "base.epoch1"), rewind(folder, "base", "base.epoch1")
    assert equal(result.weights, snapshot.weights)
    assert result.sidecar.optimizer == snapshot.sidecar.optimizer


def test_a_snapshot_that_is_cut_already_is_cut_further(folder: Path) -> None:
    dense = rewind(folder, "both", "base.epoch1")
    rewind(folder, "cut", "base.epoch1")  # the cut snapshot
    assert equal(rewind(folder, "both", "rewound-cut").weights, dense.weights)


def test_scores_are_reset_and_the_history_says_what_was_done(folder: Path) -> None:
    pruned, snapshot, result = load(folder, "cut"), load(folder, "base.epoch1"), rewind(folder, "cut", "base.epoch1")
    metrics = result.sidecar.metrics
    assert (metrics.last, metrics.best, metrics.curve) == (None, None, [])
    entry = result.sidecar.history[-1]
    assert result.sidecar.history[:-1] == pruned.sidecar.history
    assert (entry.command, entry.parent) == ("rewind", pruned.sha256)
    assert (entry.options["regime"], entry.options["to"]) == ("weight-rewind", snapshot.sha256)


def test_results_are_numbers_for_programs_and_lines_for_people(folder: Path) -> None:
    options = RewindOptions(
        checkpoint=str(folder / "cut.safetensors"), to=str(folder / "base.epoch1.safetensors"),
        output=str(folder / "out.safetensors"),
    )  # fmt: skip
    result = prunecli.rewind(options)
    data = json.loads(json.dumps(result.data()))
    assert (data["regime"], data["epoch"], data["epochs"], data["params"]) == ("weight-rewind", 1, EPOCHS, 15_738)
    assert "weight-rewind: at epoch 1 of 3" in result.text()


def test_equal_work_gives_equal_bytes(folder: Path) -> None:
    outputs = [folder / "first" / "x.safetensors", folder / "second" / "x.safetensors"]
    for output in outputs:
        output.parent.mkdir()
        files = {"checkpoint": str(folder / "both.safetensors"), "to": str(folder / "base.epoch1.safetensors")}
        prunecli.rewind(RewindOptions(**files, output=str(output)))
    first, second = ([path.read_bytes(), path.with_suffix(".json").read_bytes()] for path in outputs)
    assert first == second


# What is refused


def altered(folder: Path, name: str, **changes: object) -> str:
    """A copy of a checkpoint with a changed sidecar; returns its name."""
    source = load(folder, name)
    sidecar = msgspec.structs.replace(source.sidecar, **changes)
    checkpoints.save(Checkpoint(source.weights, sidecar), folder / "altered.safetensors")
    return "altered"


def refused(folder: Path, *args: object, **options: object) -> UsageError:
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UsageError) as caught:
        rewind(folder, *args, **options)  # type: ignore[arg-type]
    assert caught.value.hint
    assert sorted(path.name for path in folder.iterdir()) == before
    return caught.value


@pytest.mark.parametrize(
    "options, message",
    [
        ({"regime": "weight-rewind"}, "no snapshot"),
        ({"regime": "lottery"}, "no snapshot"),
        ({"regime": "lotery"}, "unknown value 'lotery'"),
        ({"regime": "finetune", "fresh": True}, "--fresh means nothing"),
        ({"to": "x.safetensors", "carry": True}, "--carry means nothing"),
        ({"to": "x.safetensors", "from_epoch": 1}, "--from-epoch means nothing"),
        ({"regime": "finetune", "epochs": 0}, "--epochs 0"),
        ({"output": "x.pt"}, "--output 'x.pt'"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RewindOptions(**({"checkpoint": "a.safetensors", "output": "b.safetensors"} | options))  # type: ignore[arg-type]


def test_a_snapshot_of_another_network_is_refused(folder: Path) -> None:
    arch = msgspec.structs.replace(load(folder, "base").sidecar.arch, name="lenet5-branches")
    error = refused(folder, "cut", altered(folder, "base.epoch1", arch=arch))
    assert "lenet5-branches" in error.message
    assert "altered.safetensors" in error.message


def test_a_snapshot_that_was_cut_differently_is_refused(folder: Path) -> None:
    prunecli.prune(
        PruneOptions(
            checkpoint=str(folder / "base.safetensors"), output=str(folder / "other.safetensors"), method="random",
            sparsity=0.5, no_eval=True,
        )
    )  # fmt: skip
    assert "was cut differently" in refused(folder, "cut", "other", regime="weight-rewind").message


def test_a_snapshot_whose_masks_lack_kept_weights_is_refused(folder: Path) -> None:
    assert "its mask of" in refused(folder, "base", "masked").message


def test_a_snapshot_without_a_run_or_without_optimizer_state_is_refused(folder: Path) -> None:
    assert "no training run" in refused(folder, "cut", altered(folder, "base.epoch1", training=None)).message
    optimizer = load(folder, "base.epoch1").sidecar.optimizer
    assert optimizer is not None
    stateless = altered(folder, "base.epoch1", optimizer=msgspec.structs.replace(optimizer, state={}))
    error = refused(folder, "cut", stateless)
    assert "without the optimizer's state" in error.message
    assert "--fresh" in error.hint
    assert position(rewind(folder, "cut", stateless, fresh=True)) == (1, 0, EPOCHS)


def test_a_finished_run_leaves_nothing_to_rewind_to(folder: Path) -> None:
    assert "its run is over" in refused(folder, "cut", "base").message
    assert "run of 3 epochs is over" in refused(folder, "cut", from_epoch=EPOCHS).message


def test_a_snapshot_of_another_run_is_said_to_be_one(folder: Path) -> None:
    assert not rewind(folder, "cut", "base.epoch1").sidecar.history[-1].notes
    assert not rewind(folder, "both", "base.epoch0").sidecar.history[-1].notes
    other = rewind(folder, "cut", "adam.epoch2")
    assert other.sidecar.history[-1].notes == ["--to is no snapshot of the run that was pruned"]


def test_a_ticket_is_only_the_initialisation(folder: Path) -> None:
    error = refused(folder, "cut", "base.epoch1", regime="lottery")
    assert "at epoch 1" in error.message
    assert "--keep 0" in error.hint


def test_state_that_is_not_there_cannot_be_carried(folder: Path) -> None:
    rewind(folder, "cut")
    assert "no state of SGD" in refused(folder, "rewound-cut", carry=True).message


def test_a_history_that_describes_no_run_is_damage(folder: Path) -> None:
    history = load(folder, "cut").sidecar.history
    history[0].options["training"] = {"epochs": "many"}
    with pytest.raises(DamagedError, match="describes no run"):
        rewind(folder, altered(folder, "cut", history=history))


# The relation of two records


def record(**kept: list[int]) -> Surgery:
    return Surgery(
        index=[IndexSet(of=8, kept=indices) for indices in kept.values()],
        axes={name: {"0": number} for number, name in enumerate(kept)},
    )


def test_remaining_cuts_are_positions_in_what_the_snapshot_has() -> None:
    rest = remaining(record(a=[1, 5], b=[0, 7]), record(a=[1, 3, 5]), "snapshot")
    assert rest.axes == {"a": {"0": 0}, "b": {"0": 1}}
    assert rest.index == [IndexSet(of=3, kept=[0, 2]), IndexSet(of=8, kept=[0, 7])]
    assert remaining(record(a=[1, 5]), record(a=[1, 5]), "snapshot").axes == {}


@pytest.mark.parametrize("there", [record(a=[1, 2]), record(c=[1])])
def test_a_slice_that_the_snapshot_lacks_is_an_error(there: Surgery) -> None:
    with pytest.raises(UsageError, match="was cut differently"):
        remaining(record(a=[1, 5]), there, "snapshot")


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    pruned, snapshot = load(folder, "cut"), load(folder, "base.epoch0")
    snapshot.weights["fc2.bias"] = torch.zeros(11)
    with pytest.raises(UsageError, match=r"fc2.bias is \(11,\), the pruned network's is \(10,\)"):
        cut_snapshot(pruned, snapshot)
