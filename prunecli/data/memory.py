"""A split held as one tensor: a batch costs an index, a gather when augmented, and a normalisation in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from prunecli.data.base import Augment, Fit, InMemory, Order
from prunecli.data.images import augmented, resized, scale_and_shift
from prunecli.data.randomness import generator, in_batches, steps, visiting_order


class MemorySplit:
    """Images [N, C, H, W] and labels [N] that move to the device once.

    Images that would not fit into memory at the wanted size stay as they are and are resized batch by batch.
    """

    def __init__(
        self,
        examples: InMemory,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Augment,
        fit: Fit,
    ) -> None:
        self.images = examples.images
        self.labels = examples.labels
        self.scale, self.shift = scale_and_shift(mean, std)
        self.augment = augment
        self.fit = fit

    def __len__(self) -> int:
        return len(self.labels)

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch."""
        return steps(len(self), batch_size)

    def batches(
        self, batch_size: int, *, order: Order | None = None, start: int = 0, device: str | torch.device = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `prunecli.data.base.Split.batches`."""
        self._move(device)
        picks = in_batches(visiting_order(len(self), order).to(device), batch_size)
        for step, picked in enumerate(picks[start:], start):
            images = resized(self.images.index_select(0, picked), self.fit)
            if order is not None and order.augment:
                images = augmented(images, self.augment, generator(order.seed, order.epoch, step))
            yield images.float().mul_(self.scale).add_(self.shift), self.labels.index_select(0, picked)

    def _move(self, device: str | torch.device) -> None:
        self.images, self.labels = self.images.to(device), self.labels.to(device)
        self.scale, self.shift = self.scale.to(device), self.shift.to(device)
