"""A small checkpoint for tests of what happens to files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prunecli import models
from prunecli.checkpoint import Checkpoint, build, load, pack_mask, save, to_array
from prunecli.errors import PruneError
from prunecli.sidecar import Arch, Cost, IndexSet, Optimizer, ParamGroup, Schedule, Sidecar, Step, Surgery, Training


def write(path: Path, *, inline_limit: int = 10**6, **parts: Any) -> Sidecar:
    """A small real checkpoint: a cut LeNet-5 with a mask, momentum and a schedule position."""
    weights = dict(models.build("lenet5", {}).state_dict())
    for name, axis in (("conv1.weight", 0), ("conv1.bias", 0), ("conv2.weight", 1)):
        weights[name] = weights[name].narrow(axis, 0, 2)
    for name in [name for name in weights if name.startswith("conv3")]:
        weights[name] = torch.zeros_like(weights[name])
    momentum = {"conv1.bias": {"momentum_buffer": to_array(torch.ones(2))}}
    sidecar = Sidecar(
        arch=Arch(name="lenet5"),
        cost=Cost(input=[1, 32, 32], positions={"conv1.weight": 784}),
        surgery=Surgery(
            index=[IndexSet(of=6, kept=[0, 1])],
            axes={"conv1.weight": {"0": 0}, "conv1.bias": {"0": 0}, "conv2.weight": {"1": 0}},
            attributes={"conv1": {"out_channels": 2}, "conv2": {"in_channels": 2}},
        ),
        masks={"fc1.weight": pack_mask(weights["fc1.weight"] > 0)},
        optimizer=Optimizer(name="SGD", groups=[ParamGroup(params=["conv1.bias"])], state=momentum),
        training=Training(epochs=3, batch_size=4, seed=0, lr=0.1, schedule=Schedule()),
        history=[Step(command="train", options={"seed": 1}, versions={})],
    )
    for name, part in parts.items():
        setattr(sidecar, name, part)
    save(Checkpoint(weights, sidecar), path, inline_limit=inline_limit)
    return sidecar


def refused(path: Path, kind: type[PruneError] = PruneError) -> PruneError:
    """The error that loading or building gives; it names the checkpoint and says a way out."""
    with pytest.raises(kind) as caught:
        build(load(path))
    assert path.stem in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}
