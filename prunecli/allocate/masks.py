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
    parts = dict(zip(scores, torch.split(flat, sizes), strict=True))
    best = {name: int(part.argmax()) for name, part in parts.items() if part.max() > -torch.inf}
    spared = {name: float(parts[name][index]) for name, index in best.items()}
    for name, index in best.items():
        parts[name][index] = torch.inf  # never removed: the next lowest goes instead, and the count stays exact
    removed = lowest(flat, min(count, len(flat) - len(best)))
    limit = float(flat[removed].max()) if bool(removed.any()) else -torch.inf
    masks = {n: ~part.view_as(scores[n]) for n, part in zip(scores, torch.split(removed, sizes), strict=True)}
    return masks, [name for name, score in spared.items() if score <= limit and int(masks[name].sum()) == 1]


def _masked_first(score: Tensor, mask: Tensor | None) -> Tensor:
    flat = score.detach().flatten().float().clone()
    if mask is not None:
        flat[~mask.flatten().to(flat.device)] = -torch.inf
    return flat
