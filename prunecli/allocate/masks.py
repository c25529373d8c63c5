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


def by_tensor(scores: Named, old: Named, counts: Mapping[str, int]) -> tuple[dict[str, Tensor], list[str]]:
    """Masks (true = kept) that prune `counts` weights of each tensor, and the tensors that keep one by the guard.

    `scores` and `old` (the masks so far, which only ever lose weights) are in the weights' shapes.
    """
    new: dict[str, Tensor] = {}
    guarded: list[str] = []
    for name, score in scores.items():
        masks, emptied = by_rank({name: score}, {name: old[name]} if name in old else {}, counts[name])
        new |= masks
        guarded += emptied
    return new, guarded


def by_rank(scores: Named, old: Named, count: int) -> tuple[dict[str, Tensor], list[str]]:
    """Masks that prune `count` weights in all, lowest scores first wherever they are; else as `by_tensor`.

    What is masked already counts, and stays masked even where that is more than `count`.
    """
    sizes = [score.numel() for score in scores.values()]
    flat = torch.cat([_masked_first(score, old.get(name)) for name, score in scores.items()])
    count = max(count, int((flat == -torch.inf).sum()))
    removed, guarded = lowest(flat, count), list[str]()
    while emptied := _emptied(removed, flat, sizes):
        # The next lowest weight goes in the place of the last one of a tensor, so that the count stays exact.
        for number, best in emptied.items():
            flat[best] = torch.inf
            guarded.append(list(scores)[number])
        removed = lowest(flat, min(count, sum(sizes) - len(guarded)))
    masks = {n: ~part.view_as(scores[n]) for n, part in zip(scores, torch.split(removed, sizes), strict=True)}
    return masks, guarded


def _emptied(removed: Tensor, flat: Tensor, sizes: list[int]) -> dict[int, int]:
    """Tensors that would lose their last live weight: number of the tensor -> index of its best weight."""
    emptied = {}
    offset = 0
    for number, (part, values) in enumerate(zip(torch.split(removed, sizes), torch.split(flat, sizes), strict=True)):
        best = int(values.argmax())
        if bool(part.all()) and values[best] > -torch.inf:
            emptied[number] = offset + best
        offset += len(part)
    return emptied


def _masked_first(score: Tensor, mask: Tensor | None) -> Tensor:
    flat = score.detach().flatten().float().clone()
    if mask is not None:
        flat[~mask.flatten().to(flat.device)] = -torch.inf
    return flat
