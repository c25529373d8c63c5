"""Checkpoints to prune in tests, and the command run beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunecli import checkpoint as checkpoints
from prunecli import measure, models
from prunecli.checkpoint import Checkpoint
from prunecli.commands.prune import run
from prunecli.commands.pruned import PruneResult
from prunecli.options.prune import PruneOptions
from prunecli.sidecar import Arch, Optimizer, ParamGroup, Sidecar


def write(folder: Path, name: str = "lenet5", **args: Any) -> Path:
    """A checkpoint of a network of random weights with twice the weights as momentum, so that cuts can be followed."""
    torch.manual_seed(1)
    network = models.build(name, args)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
    shape = models.input_shape(name, args)
    assert shape
    state = {
        n: {
            "exp_avg": checkpoints.to_array(2 * p.detach()),
            "exp_avg_sq": checkpoints.to_array(p.detach().square()),
            "step": checkpoints.to_array(torch.tensor(7.0)),
        }
        for n, p in network.named_parameters()
    }
    optimizer = Optimizer(name="Adam", groups=[ParamGroup(params=list(state), options={"lr": 1e-3})], state=state)
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
    return {n: checkpoints.to_tensor(s["exp_avg"]) for n, s in checkpoint.sidecar.optimizer.state.items()}
