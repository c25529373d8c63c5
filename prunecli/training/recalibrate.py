"""Batch-norm statistics computed anew, for a network whose activations are no longer those that it was trained with."""

from __future__ import annotations

from itertools import count, islice

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunecli.data import Order, Split
from prunecli.errors import UsageError


def recalibrate(network: nn.Module, split: Split, batches: int, *, batch_size: int, seed: int, device: str) -> None:
    """Replace the running statistics by their plain average over `batches` batches of `split`, in a seeded order.

    The batch norms alone are in train mode meanwhile, so that dropout stays off; nothing is augmented, and the
    statistics get memory of their own. Further epochs follow where one has too few batches. Raises `UsageError` for a
    network without running statistics.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        raise UsageError("--recalibrate: this network has no batch norm with running statistics", "drop --recalibrate")
    network.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        for name, buffer in norm.named_buffers(recurse=False):
            setattr(norm, name, buffer.clone())
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    epochs = (split.batches(batch_size, order=Order(seed, epoch), device=device) for epoch in count())
    with torch.no_grad():
        for x, _ in islice((batch for epoch in epochs for batch in epoch), batches):
            network(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
