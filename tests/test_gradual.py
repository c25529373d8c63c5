"""What methods that prune while they train have in common: the loop around them, live cuts, refusals, documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from gradual import check_resumed, finetune, gradients, live, prune, train

from prunecli import checkpoint as checkpoints
from prunecli import training
from prunecli.checkpoint import to_array
from prunecli.errors import DamagedError, PruneError, UsageError
from prunecli.methods import gradual
from prunecli.options.prune import PruneOptions
from prunecli.options.shared import Execution
from prunecli.options.train import TrainOptions
from prunecli.surgery import Plan
from prunecli.training import Hook, Run

ROOT = Path(__file__).parent.parent


class Recording(Hook):
    """Writes down what the loop calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def begin(self, run: Run, say: Any) -> None:
        self.calls.append("begin")

    def before_forward(self, run: Run) -> None:
        assert all(p.grad is None for p in run.network.parameters())
        self.calls.append("forward")

    def after_backward(self, run: Run) -> None:
        assert all(p.grad is not None for p in run.network.parameters())
        self.calls.append("backward")

    def after_step(self, run: Run) -> None:
        self.calls.append("step")

    def after_epoch(self, run: Run) -> None:
        self.calls.append("epoch")

    def end(self, run: Run) -> None:
        assert len(run.metrics.curve) == run.training.epochs
        self.calls.append("end")


def test_the_loop_calls_a_method_at_its_moments(tmp_path: Path) -> None:
    base, hook = train(tmp_path, epochs=0), Recording()
    recipe = TrainOptions(arch="lenet5", data="digits", output="x.safetensors", epochs=2, batch_size=600, lr=0.01)
    training.begin_again(base, recipe)
    data = training.open_data(base.sidecar.data, recipe, training.image_size(base.sidecar))
    training.fit(base, data, Execution(threads=1), hook=hook)
    epoch = ["forward", "backward", "step"] * data.train.steps(600) + ["epoch"]
    assert hook.calls == ["begin", *epoch, *epoch, "end"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_live_cut_takes_momentum_masks_and_the_methods_tensors_along(tmp_path: Path, optimizer: str) -> None:
    run = live(tmp_path, "sfp", {}, {"sparsity": 0.5}, optimizer=optimizer)
    parameter = run.network.get_parameter("conv2.weight")
    gradients(run)
    parameter.grad = torch.randn_like(parameter)
    run.optimizer.step()
    run.mask({"conv2.weight": torch.rand(parameter.shape) > 0.5})
    run.hook.tensors["score"] = {"conv2.weight": torch.rand(parameter.shape)}
    state = {key: value.clone() for key, value in run.optimizer.state[parameter].items() if value.ndim}
    mask, score = run.masks["conv2.weight"].clone(), run.hook.tensors["score"]["conv2.weight"].clone()
    run.shrink(run.structure(), Plan({"conv1": [0, 2, 5], "conv2": [1, 3]}))
    assert run.network.get_parameter("conv2.weight") is parameter
    assert run.optimizer.param_groups[0]["params"][2] is parameter
    for now, before in (
        (run.masks["conv2.weight"], mask),
        (run.hook.tensors["score"]["conv2.weight"], score),
        *((run.optimizer.state[parameter][key], value) for key, value in state.items()),
    ):
        assert torch.equal(now, before[[1, 3]][:, [0, 2, 5]])
    assert parameter.is_contiguous(memory_format=torch.channels_last)
    saved = run.checkpoint()
    network = checkpoints.build(saved)
    assert network.get_parameter("conv2.weight").shape == (2, 3, 5, 5)
    assert saved.sidecar.masks["conv2.weight"].shape == [2, 3, 5, 5]


@pytest.mark.parametrize(
    ("command", "options", "flag"),
    [
        ("train", {"sparsity": 0.5}, "--sparsity"),
        ("train", {"method_arg": ("a=1",)}, "--method-arg"),
        ("train", {"method": "l1", "sparsity": 0.5}, "--method"),
        ("train", {"method": "swd", "sparsity": 0.5, "method_arg": ("a_max",)}, "--method-arg"),
        ("prune", {"method": "l1", "sparsity": 0.5, "epochs": 3}, "--epochs"),
        ("prune", {"method": "l1", "sparsity": 0.5, "method_arg": ("a=1",)}, "--method-arg"),
        ("prune", {"method": "swd", "sparsity": 0.5, "rounds": 3}, "--rounds"),
        ("prune", {"method": "swd", "sparsity": 0.5, "dry_run": True}, "--dry-run"),
        ("prune", {"method": "sfp", "sparsity": 0.5, "heads": True}, "--heads"),
        ("prune", {"method": "swd", "max_params": "100M"}, "--max-params"),
    ],
)
def test_options_that_mean_nothing_are_refused_by_name(
    tmp_path: Path, command: str, options: dict[str, Any], flag: str
) -> None:
    output = str(tmp_path / "out.safetensors")
    with pytest.raises(UsageError) as error:
        if command == "train":
            train(tmp_path, **options)
        else:
            base = train(tmp_path, epochs=0)
            prune(base.path, **({"epochs": None, "batch_size": None, "lr": None, "output": output} | options))
    assert flag in error.value.message
    assert not Path(output).exists()


def test_a_resumed_run_with_another_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a_max 10000\.0 there, 5\.0 now"):
        check_resumed(tmp_path, 2, again={"method_arg": ("a_max=5",)}, method="swd", sparsity=0.5)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "unknown"},
        {"settings": {"sparsity": 7}},
        {"settings": {}},
        {"state": {"made": "up"}},
        {"tensors": {"score": {"nothing.weight": to_array(torch.zeros(2))}}},
    ],
)
def test_a_damaged_state_is_refused_by_name(tmp_path: Path, change: dict[str, Any]) -> None:
    train(tmp_path, method="swd", sparsity=0.5, keep="1")
    middle = checkpoints.load(tmp_path / "x.epoch1.safetensors")
    assert middle.sidecar.training
    for field, value in change.items():
        setattr(middle.sidecar.training.method, field, value)
    checkpoints.save(middle, tmp_path / "middle.safetensors")
    with pytest.raises(DamagedError, match=r"training"):
        finetune(tmp_path / "middle.safetensors")


def test_a_snapshot_in_the_middle_goes_on_with_its_method(tmp_path: Path) -> None:
    whole = train(tmp_path, method="swd", sparsity=0.5, keep="1")
    rest = finetune(tmp_path / "x.epoch1.safetensors")
    assert rest.weights.keys() == whole.weights.keys()
    assert all(torch.equal(rest.weights[name], tensor) for name, tensor in whole.weights.items())
    assert rest.sidecar.masks == whole.sidecar.masks


@pytest.mark.parametrize("name", gradual.GRADUAL)
def test_the_readme_describes_every_method_with_its_options_and_settings(name: str) -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Methods that prune")[2]
    row = next(line for line in section.splitlines() if line.startswith(f"| `{name}` |"))
    _, _, _, options, settings, _ = row.split("|")
    assert sorted(re.findall(r"`--([a-z-]+)`", options)) == sorted(
        key.replace("_", "-") for key in gradual.GRADUAL[name].takes
    )
    assert sorted(re.findall(r"`(\w+)` \(", settings)) == sorted(s.name for s in gradual.settings_of(name))
    for setting in gradual.settings_of(name):
        assert setting.meaning, setting.name
        assert setting.values, setting.name


def test_help_names_the_methods() -> None:
    for options in (TrainOptions, PruneOptions):
        help = options.__dataclass_fields__["method"].metadata["help"]
        assert all(name in help for name in gradual.GRADUAL)


def test_the_log_of_an_epoch_is_in_the_sidecar_as_plain_numbers(tmp_path: Path) -> None:
    train(tmp_path, method="swd", sparsity=0.5)
    curve = json.loads((tmp_path / "x.json").read_text())["metrics"]["curve"]
    assert [sorted(log["method"]) for log in curve] == [["a", "macs", "params", "penalty", "sparsity"]] * 2


def test_errors_of_methods_are_errors_of_prunecli() -> None:
    with pytest.raises(PruneError):
        gradual.resolve("swd", {"sparsity": 2.0}, {})
