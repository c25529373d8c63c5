"""Unstructured allocation: which single weights go, by exact count."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Named = Mapping[str, Tensor]


def lowest(scores: Tensor, count: int) -> Tensor:
    """A boolean tensor [n] that is true for exactly the `count` lowest of `scores` [n]; ties go by index."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    # Selection, not a sort: linear in the number of weights.
    last = scores.kthvalue(count).values
    chosen = scores < last
    ties = (scores == last).nonzero().flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen


def by_tensor(
    scores: Named, old: Named, counts: Mapping[str, int], least: Mapping[str, int]
) -> tuple[dict[str, Tensor], list[str]]:
    """Masks (true = kept) that prune `counts` weights of each tensor, and the tensors that `least` has held.

    `scores` and `old` (the masks so far, which only ever lose weights) are in the weights' shapes; `least` is how many
    weights of each tensor stay whatever is asked.
    """
    new: dict[str, Tensor] = {}
    held: list[str] = []
    for name, score in scores.items():
        masks, ended = by_rank({name: score}, {name: old[name]} if name in old else {}, counts[name], least)
        new |= masks
        held += ended
    return new, held


def by_rank(scores: Named, old: Named, count: int, least: Mapping[str, int]) -> tuple[dict[str, Tensor], list[str]]:
    """Masks that prune `count` weights in all, lowest scores first wherever they are; else as `by_tensor`.

    What is masked already counts, and stays masked even where that is more than `count` or leaves less than `least`.
    """
    sizes = [score.numel() for score in scores.values()]
    flat = torch.cat([_masked_first(score, old.get(name)) for name, score in scores.items()])
    count = max(count, int((flat == -torch.inf).sum()))
    alone = [int(part.sum()) for part in torch.split(lowest(flat, count), sizes)]
    for name, part in zip(scores, torch.split(flat, sizes), strict=True):
        # never removed: the next lowest goes instead, and the count stays exact
        part[~lowest(part, len(part) - least[name]) & (part > -torch.inf)] = torch.inf
    removed = lowest(flat, min(count, int((flat < torch.inf).sum())))
    masks = {n: ~part.view_as(scores[n]) for n, part in zip(scores, torch.split(removed, sizes), strict=True)}
    held = [name for name, ranked in zip(scores, alone, strict=True) if ranked > int((~masks[name]).sum())]
    return masks, held


def _masked_first(score: Tensor, mask: Tensor | None) -> Tensor:
    flat = score.detach().flatten().float().clone()
    if mask is not None:
        flat[~mask.flatten().to(flat.device)] = -torch.inf
    return flat
