"""Scores of a network on a split."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from prunecli import tasks
from prunecli.data import Split
from prunecli.surgery.within import tensors_in

BATCH = 512  # examples


def evaluate(
    network: nn.Module,
    split: Split,
    *,
    device: str = "cpu",
    batch_size: int = BATCH,
    precision: str = "fp32",
    task: str = "classification",
) -> dict[str, float]:
    """Scores of `network` in eval mode on all of `split`, in file order; the network's mode is restored."""
    judge = tasks.get(task)
    was_training = network.training
    network.eval()
    totals = torch.zeros(0)
    try:
        with torch.inference_mode():
            for x, y in split.batches(batch_size, order=None, device=device):
                with autocast(precision, device):
                    output = network(x)
                batch = judge.totals(output, y).cpu()
                totals = batch if not len(totals) else totals + batch
    finally:
        network.train(was_training)
    return judge.scores(totals.tolist())


def first_outputs(network: nn.Module, split: Split, *, device: str, precision: str) -> Tensor:
    """The first tensor that `network` makes of the first 512 examples in eval mode, [N, ...]; its mode is restored."""
    was_training = network.training
    network.eval()
    try:
        x, _ = next(iter(split.batches(BATCH, order=None, device=device)))
        with torch.inference_mode(), autocast(precision, device):
            return next(tensors_in(network(x))).float()
    finally:
        network.train(was_training)


def autocast(precision: str, device: str) -> AbstractContextManager[object]:
    """Mixed precision for `bf16`, nothing for `fp32`."""
    if precision == "bf16":
        return torch.autocast(device.split(":")[0], torch.bfloat16)
    return nullcontext()
