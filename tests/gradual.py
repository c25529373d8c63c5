"""Helpers of the tests of methods that prune while they train."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import prunecli
from prunecli import checkpoint as checkpoints
from prunecli import training
from prunecli.checkpoint import Checkpoint
from prunecli.methods import gradual
from prunecli.options.prune import PruneOptions
from prunecli.options.shared import Execution
from prunecli.options.train import FinetuneOptions, TrainOptions
from prunecli.progress import Say, Silent, silent
from prunecli.training import Hook, Run
from prunecli.training.run import start


class Killed(Exception):
    """Stands for a process that dies."""


class Listening(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.statuses: list[str] = []

    def __call__(self, text: str) -> None:
        self.lines.append(text)

    def status(self, text: str) -> None:
        self.statuses.append(text)


class KillAt(Silent):
    """Dies after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def status(self, text: str) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


def train(folder: Path, say: Say = silent, **options: Any) -> Checkpoint:
    """What `train` writes, of a small network on the digits."""
    small = {"arch": "lenet5", "data": "digits", "epochs": 2, "batch_size": 256, "lr": 0.05, "threads": 1}
    path = folder / "x.safetensors"
    prunecli.train(TrainOptions(**({"output": str(path)} | small | options)), say)
    return checkpoints.load(path)


def prune(source: Path, say: Say = silent, **options: Any) -> Checkpoint:
    """What `prune` writes, of a checkpoint."""
    small = {"epochs": 2, "batch_size": 256, "lr": 0.05, "threads": 1}
    output = {"output": str(source.with_name("pruned.safetensors"))}
    made = PruneOptions(checkpoint=str(source), **(output | small | options))
    prunecli.prune(made, say)
    return checkpoints.load(made.output)


def finetune(path: Path, **options: Any) -> Checkpoint:
    """What `finetune` writes of a checkpoint; without `options` its run goes on."""
    output = str(path.with_name("finetuned.safetensors"))
    prunecli.finetune(FinetuneOptions(checkpoint=str(path), output=output, threads=1, **options))
    return checkpoints.load(output)


def check_resumed(tmp_path: Path, steps: int, *, again: dict[str, Any] | None = None, **options: Any) -> None:
    """A run that is killed after `steps` steps, and resumed (with `again` changed), ends with the bytes of one that
    is not."""
    small = {"arch": "lenet5", "data": "digits", "epochs": 2, "batch_size": 256, "lr": 0.05, "threads": 1}
    folders = [tmp_path / "whole", tmp_path / "killed"]
    made = []
    for folder in folders:
        folder.mkdir()
        made.append(TrainOptions(**({"output": str(folder / "x.safetensors"), "save_every": 1} | small | options)))
    whole, killed = made
    prunecli.train(whole)
    with pytest.raises(Killed):
        prunecli.train(killed, KillAt(steps))
    prunecli.train(dataclasses.replace(killed, resume=True, **(again or {})))
    for name in ("x.safetensors", "x.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def live(folder: Path, method: str, arguments: dict[str, Any], given: dict[str, Any], **options: Any) -> Run:
    """A run of a small network with `method` at work, before its first step."""
    base = train(folder, **({"epochs": 0} | options))
    spec = gradual.resolve(method, given, arguments)
    recipe = TrainOptions(arch="lenet5", data="digits", output="x.safetensors", epochs=4, batch_size=256, lr=0.05)
    training.begin_again(base, dataclasses.replace(recipe, **options)).method = spec
    hook = gradual.hook(spec)
    assert isinstance(hook, Hook)
    data = training.open_data(base.sidecar.data, recipe, training.image_size(base.sidecar))
    run = start(base, data, Execution(threads=1, trust=options.get("trust", ())), hook)
    run.hook.begin(run, Silent())
    return run


def gradients(run: Run) -> None:
    """Set the gradients of all parameters to zero: what a method adds to them is then alone there."""
    for parameter in run.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
