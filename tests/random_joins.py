"""Pieces of random networks that take two tensors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from random_blocks import along
from random_pieces import GRIDS, Live, Pick, Piece
from torch import Tensor, nn

# of two tensors and the axis of their channels
JOINS: dict[str, Any] = {
    "+": lambda a, b, axis: a + b,
    "-": lambda a, b, axis: a - 2 * b,
    "*": lambda a, b, axis: a * b,
    "gate": lambda a, b, axis: a * torch.sigmoid(b),
    "max": lambda a, b, axis: torch.maximum(a, b),
    "either": lambda a, b, axis: torch.where(a > b, a, b * 0.5),
    "lerp": lambda a, b, axis: torch.lerp(a, b, 0.3),
    "in place": lambda a, b, axis: a.mul(2).add_(b),
    "dot": lambda a, b, axis: a * (a * b).sum(axis, keepdim=True),
    "cosine": lambda a, b, axis: a * F.cosine_similarity(a, b, axis).unsqueeze(axis),
    "mean of a stack": lambda a, b, axis: torch.stack([a, b]).mean(0),
    "dealt out": lambda a, b, axis: torch.stack([a, b], axis + 1).flatten(axis, axis + 1),
    "outer": lambda a, b, axis: torch.einsum("...i,...j->...ij", a, b).flatten(-2),
    "bilinear": None, "concatenated thrice": None,
}  # fmt: skip


class Join(Piece):
    """Two tensors of a kind and of the same positions, brought to one width first where that is needed."""

    sources = 2

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any] | None:
        a, b = x
        which = pick(["+", "+", "cat", "cat", *JOINS])
        if a.kind != b.kind or [n for d, n in enumerate(a.shape) if d != a.axis] != [
            n for d, n in enumerate(b.shape) if d != b.axis
        ]:
            return None
        if "cat" in which and a.channels + 2 * b.channels > 40:
            return None
        if which in ("bilinear", "outer") and (a.kind in GRIDS or a.channels * b.channels > 40):
            return None
        free = which in ("cat", "concatenated thrice", "bilinear", "outer")
        return {"which": which, "project": not free and (a.channels != b.channels or pick([False, True]))}

    def __init__(self, a: Live, b: Live, which: str, project: bool) -> None:
        super().__init__()
        self.which, self.axis = which, a.axis
        self.bilinear = nn.Bilinear(a.channels, b.channels, 5) if which == "bilinear" else None
        self.project = along(b, a.channels) if project else nn.Identity()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        b = self.project(b)
        axis = self.axis
        if self.bilinear is not None:
            return self.bilinear(a, b)
        match self.which:
            case "cat":
                return torch.cat([a, b], axis)
            case "concatenated thrice":
                return torch.cat([b, a, b], axis)
        return JOINS[self.which](a, b, axis)


class Modulate(Piece):
    """A vector scales and shifts a grid or tokens, by layers of its own."""

    takes = (*GRIDS, "tokens")
    sources = 2

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any] | None:
        return {"fused": pick([True, False])} if x[1].kind == "vector" else None

    def __init__(self, x: Live, by: Live, fused: bool) -> None:
        super().__init__()
        self.shape = x.along_channels()
        self.scale = nn.Linear(by.channels, 2 * x.channels if fused else x.channels)
        self.shift = None if fused else nn.Linear(by.channels, x.channels)

    def forward(self, x: Tensor, by: Tensor) -> Tensor:
        scale, shift = self.scale(by).chunk(2, 1) if self.shift is None else (self.scale(by), self.shift(by))
        rest = [1 if n == 1 else -1 for n in self.shape]
        scale, shift = (y.view(y.shape[0], *rest) for y in (scale, shift))
        return x * (1 + scale) + shift
