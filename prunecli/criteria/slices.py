"""Aligned slices: the part of one tensor that belongs to each unit, as a row a unit."""

from __future__ import annotations

import torch
from torch import Tensor


def aligned(tensor: Tensor, axis: int, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Gather what `tensor` has of each unit: units [present], ascending, and their slices [present, elements].

    `unit` [length of the axis] says whose slice each index of `axis` is, -1 for nobody's. A unit with fewer slices than
    another (uneven blocks) is filled up with zeros.
    """
    places = (unit >= 0).nonzero().flatten()
    places = places[torch.argsort(unit[places], stable=True)]
    present, counts = torch.unique_consecutive(unit[places], return_counts=True)
    moved = tensor.detach().movedim(axis, 0).flatten(1) if tensor.ndim > 1 else tensor.detach().unsqueeze(1)
    if not torch.equal(places, torch.arange(len(moved), device=unit.device)):
        moved = moved[places]
    if bool((counts == counts[:1]).all()):  # nothing to fill up, which copying large weights would take long for
        return present, moved.reshape(len(present), -1 if len(present) else 0).float()
    rows = torch.arange(len(present), device=unit.device).repeat_interleave(counts)
    columns = torch.arange(len(places), device=unit.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    slices = moved.new_zeros((len(present), int(counts.max()), moved.shape[1]), dtype=torch.float32)
    slices[rows, columns] = moved.float()
    return present, slices.flatten(1)
