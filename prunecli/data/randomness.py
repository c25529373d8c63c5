"""Random numbers that follow from a position (seed, epoch, step) alone, never from what ran before."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from prunecli.data.base import Order


def derived_seed(*position: int) -> int:
    """A 63-bit seed that is a hash of the position, so that neighbouring positions share nothing."""
    digest = hashlib.blake2b(repr(position).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*position: int) -> torch.Generator:
    """A CPU generator (on every device the same numbers) seeded by the position."""
    return torch.Generator().manual_seed(derived_seed(*position))


def visiting_order(count: int, order: Order | None) -> Tensor:
    """The `count` examples in the order of an epoch, int64 [count]; in file order without one."""
    if order is None:
        return torch.arange(count)
    return torch.randperm(count, generator=generator(order.seed, order.epoch))


def steps(count: int, batch_size: int) -> int:
    """Batches in an epoch of `count` examples, see `in_batches`."""
    alone = count > batch_size > 1 and count % batch_size == 1
    return -(-count // batch_size) - alone


def in_batches(picks: Tensor, batch_size: int) -> list[Tensor]:
    """`picks` in batches; the last may be smaller, and what would be a batch of one joins the batch before.

    Batch normalisation learns nothing from a single example, and over a 1x1 map refuses it.
    """
    count = steps(len(picks), batch_size)
    ends = [*range(batch_size, count * batch_size, batch_size), len(picks)]
    return list(picks.split([end - start for start, end in zip([0, *ends], ends, strict=False)]))


def stratified(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Splits example numbers into (kept, held), both ascending, with exactly `count` held and each class its share.

    A class's share is rounded down, and the largest remainders (ties: the lower class) receive what is left over.
    """
    sizes = labels.bincount().tolist()
    quotas = [count * size // len(labels) for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda label: -(count * sizes[label] % len(labels)))
    for label in by_remainder[: count - sum(quotas)]:
        quotas[label] += 1
    held = torch.zeros(len(labels), dtype=torch.bool)
    numbers = generator(seed)
    for label, quota in enumerate(quotas):
        members = (labels == label).nonzero().flatten()
        held[members[torch.randperm(len(members), generator=numbers)[:quota]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()
