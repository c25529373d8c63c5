"""A split too large for memory: worker processes read and augment its images while the network computes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from prunecli.data.base import Order, Reader, Streamed
from prunecli.data.images import scale_and_shift
from prunecli.data.randomness import derived_seed, generator, in_batches, steps, visiting_order
from prunecli.errors import DamagedError, PruneError

Failure = tuple[str, str]  # message and hint: exceptions with two arguments do not survive the way between processes


@dataclass(frozen=True)
class _Samples:
    """What a worker process gets: the reader, and the order from which each example's random numbers follow."""

    reader: Reader
    order: Order | None

    def __getitem__(self, index: int) -> Tensor | Failure:
        rng = None
        if self.order is not None and self.order.augment:
            rng = random.Random(derived_seed(self.order.seed, self.order.epoch, index))
        try:
            return self.reader.read(index, rng)
        except PruneError as error:
            return error.message, error.hint


def _collate(samples: list[Tensor | Failure]) -> Tensor | Failure:
    images = []
    for sample in samples:
        if isinstance(sample, tuple):
            return sample
        images.append(sample)
    return torch.stack(images)


class StreamSplit:
    """Examples `members` (numbers into `examples`) of a streamed data set."""

    def __init__(self, examples: Streamed, members: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
        self.examples = examples
        self.members = members
        self.scale, self.shift = scale_and_shift(mean, std)

    def __len__(self) -> int:
        return len(self.members)

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch."""
        return steps(len(self), batch_size)

    def batches(
        self, batch_size: int, *, order: Order | None = None, start: int = 0, device: str | torch.device = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `prunecli.data.base.Split.batches`. An image that cannot be read raises `DamagedError` at its batch."""
        picks = in_batches(self.members[visiting_order(len(self), order)], batch_size)[start:]
        scale, shift = self.scale.to(device), self.shift.to(device)
        # the loader draws the seeds of its workers; from the global generator it would change what comes after
        numbers = generator(order.seed, order.epoch) if order else generator(0)
        loader: DataLoader[Tensor | Failure] = DataLoader(
            _Samples(self.examples.reader, order),  # type: ignore[arg-type]  # a map-style data set by its methods
            batch_sampler=[picked.tolist() for picked in picks],
            num_workers=self.examples.workers,
            collate_fn=_collate,
            pin_memory=torch.device(device).type == "cuda",
            generator=numbers,
        )
        for picked, images in zip(picks, loader, strict=True):
            if isinstance(images, tuple | list):  # pinning turns tuples into lists
                raise DamagedError(*images)
            images = images.to(device, non_blocking=True)
            yield images.float().mul_(scale).add_(shift), self.examples.labels[picked].to(device)
