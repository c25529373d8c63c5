"""Masks of the baselines that keep the number of weights and not their places (Liu et al. 2019, section 5).

Each weight of a pool is kept with one probability. The draw is a Bernoulli draw given its count, so that the result has
exactly as many weights as the network that it is compared with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor

from prunecli.errors import UsageError

Masks = Mapping[str, Tensor]  # boolean, true = kept
Pool = Callable[[str, Tensor, int], Hashable]  # (tensor, its mask, kernel position) -> which pool these weights are in


def one_pool(name: str, mask: Tensor, position: int) -> Hashable:
    """Uniform sparsification: all weights are alike."""
    return None


def by_stage(stages: Mapping[str, int]) -> Pool:
    """Guided sparsification: weights are alike at the same position of equally large kernels in the same stage."""

    def pool(name: str, mask: Tensor, position: int) -> Hashable:
        return stages[name], tuple(mask.shape[2:]), position

    return pool


def shares(masks: Masks, pool: Pool) -> dict[Hashable, float]:
    """The kept share of each pool."""
    kept: dict[Hashable, int] = defaultdict(int)
    size: dict[Hashable, int] = defaultdict(int)
    for name, mask in masks.items():
        columns = _columns(mask)
        for position, count in enumerate(columns.sum(0).tolist()):
            kept[pool(name, mask, position)] += count
            size[pool(name, mask, position)] += len(columns)
    return {key: kept[key] / size[key] for key in kept}


def draw(masks: Masks, pool: Pool, share: Mapping[Hashable, float], generator: torch.Generator) -> dict[str, Tensor]:
    """New masks in the shapes of `masks`; each pool keeps its share, to the nearest number of weights.

    No tensor is left empty while another of its pools can give. Raises `UsageError` for a pool without a share.
    """
    places: dict[Hashable, list[tuple[str, int]]] = defaultdict(list)
    for name, mask in masks.items():
        for position in range(_columns(mask).shape[1]):
            places[pool(name, mask, position)].append((name, position))
    new = {name: torch.zeros_like(_columns(mask)) for name, mask in masks.items()}
    for key, columns in places.items():
        if key not in share:
            raise UsageError(
                f"--guide: nothing there is like {columns[0][0]} (stage, kernel and position {key})",
                "guide with a network of as many stages and the same kernels",
            )
        lengths = [len(new[name]) for name, _ in columns]
        kept = torch.zeros(sum(lengths), dtype=torch.bool)
        kept[torch.randperm(len(kept), generator=generator)[: round(share[key] * len(kept))]] = True
        for (name, position), part in zip(columns, torch.split(kept, lengths), strict=True):
            new[name][:, position] = part
    for columns in places.values():
        for name, position in columns:
            if not new[name].any():
                _give(new, columns, name, position)
    return {name: new[name].view(mask.shape) for name, mask in masks.items()}


def _columns(mask: Tensor) -> Tensor:
    """A mask [Cout, Cin, ...] as [kernels, positions in a kernel]."""
    return mask.reshape(mask.shape[0] * mask.shape[1], -1)


def _give(new: dict[str, Tensor], columns: list[tuple[str, int]], name: str, position: int) -> None:
    """Move one kept weight to the empty `name`, from the column of its pool that keeps most."""
    donor, place = max(columns, key=lambda column: int(new[column[0]][:, column[1]].sum()))
    if int(new[donor].sum()) > 1:
        new[donor][int(new[donor][:, place].nonzero()[0]), place] = False
        new[name][0, position] = True
