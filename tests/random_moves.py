"""Pieces of random networks that move data: every reshape, split, shuffle and change of kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from random_pieces import GRIDS, WIDEST, Live, Pick, Piece
from torch import Tensor

ROWS = ("tokens", "vector")


def _even(x: Tensor) -> Tensor:
    """An image without the last row and column if these are odd ones."""
    return x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]


# kinds, what must divide the channels, what to do; channels are on axis 1 of grids
MOVES: dict[str, tuple[tuple[str, ...], int, Callable[[Tensor], Tensor]]] = {
    "flip": (GRIDS, 1, lambda x: x.flip(1)),
    "mirror": (GRIDS, 1, lambda x: x.flip(-1)),
    "roll positions": (GRIDS, 1, lambda x: x.roll(1, -1)),
    "roll channels": (GRIDS, 2, lambda x: x.roll(1, 1)),
    "slice": (GRIDS, 2, lambda x: x[:, 1:]),
    "crop": (GRIDS, 1, lambda x: x[..., 1:]),
    "pad channels": (GRIDS, 1, lambda x: F.pad(x, [0, 0] * (x.ndim - 2) + [1, 2])),
    "repeat": (GRIDS, 1, lambda x: x.repeat(1, 2, *[1] * (x.ndim - 2))),
    "repeat interleaved": (GRIDS, 1, lambda x: x.repeat_interleave(2, 1)),
    "split in equal parts": (GRIDS, 2, lambda x: torch.cat(x.split(x.shape[1] // 2, 1)[::-1], 1)),
    "split in unequal parts": (GRIDS, 3, lambda x: torch.cat(x.split([1, x.shape[1] - 1], 1)[::-1], 1)),
    "halves by slices": (GRIDS, 2, lambda x: x[:, : x.shape[1] // 2] * x[:, x.shape[1] // 2 :].sigmoid()),
    "tensor_split": (GRIDS, 2, lambda x: torch.cat(x.tensor_split(2, 1)[::-1], 1)),
    "every other": (GRIDS, 2, lambda x: x[:, ::2] + x[:, 1::2]),
    "chunk gate": (GRIDS, 2, lambda x: (lambda a, b: a * torch.sigmoid(b))(*x.chunk(2, 1))),
    "glu": (GRIDS, 2, lambda x: F.glu(x, 1)),
    "shuffle 2": (GRIDS, 2, lambda x: x.unflatten(1, (2, x.shape[1] // 2)).transpose(1, 2).flatten(1, 2)),
    "shuffle 3": (GRIDS, 3, lambda x: x.unflatten(1, (3, -1)).transpose(1, 2).reshape(x.shape)),
    "channel_shuffle": (GRIDS, 2, lambda x: torch.channel_shuffle(x, 2)),
    "max of two": (GRIDS, 2, lambda x: x.unflatten(1, (-1, 2)).amax(2)),
    "sum of two": (GRIDS, 2, lambda x: x.unflatten(1, (-1, 2)).sum(2)),
    "sum of halves": (GRIDS, 2, lambda x: x.unflatten(1, (2, -1)).sum(1)),
    "means of halves": (GRIDS, 4, lambda x: x - x.unflatten(1, (2, -1)).mean(2).repeat_interleave(x.shape[1] // 2, 1)),
    "norm": (GRIDS, 1, lambda x: x / (x.square().mean((0, *range(2, x.ndim)), keepdim=True) + 1).sqrt()),
    "standardised": (GRIDS, 1, lambda x: x / (x.std((0, *range(2, x.ndim)), keepdim=True) + 1)),
    "energy": (GRIDS, 1, lambda x: x * torch.einsum("nc...,nc...->nc", x, x).view(*x.shape[:2], *[1] * (x.ndim - 2))),
    "root of the mean square": (GRIDS, 1, lambda x: x * (x.square().mean(1, keepdim=True) + 0.1).rsqrt()),
    "normalised": (GRIDS, 1, lambda x: F.normalize(x, dim=1)),
    "local response": (GRIDS, 1, lambda x: F.local_response_norm(x, 3)),
    "soft-max of positions": (GRIDS, 1, lambda x: x * x.flatten(2).softmax(2).view_as(x)),
    "soft-max of channels": (GRIDS, 1, lambda x: x * x.softmax(1)),
    "logsumexp": (GRIDS, 1, lambda x: x - x.logsumexp(1, keepdim=True)),
    "mean subtracted": (GRIDS, 1, lambda x: x - x.mean((2,), keepdim=True)),
    "mean of channels": (GRIDS, 1, lambda x: x * x.mean(1, keepdim=True).sigmoid()),
    "sum divided by the width": (GRIDS, 1, lambda x: x * (x.sum(1, keepdim=True) / x.shape[1])),
    "channels last": (GRIDS, 1, lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1)),
    "sliding windows": (GRIDS, 1, lambda x: x.unfold(-1, 2, 1).mean(-1)),
    "indexed": (GRIDS, 3, lambda x: x[:, torch.tensor([2, 0, 1], device=x.device)]),
    "written": (GRIDS, 1, lambda x: torch.zeros_like(x).copy_(x)),
    "written in parts": (
        GRIDS, 1,
        lambda x: x.clone().index_copy_(2, torch.tensor([0], device=x.device), x[:, :, -1:]),
    ),
    "masked": (GRIDS, 1, lambda x: torch.where(x > 0, x, x * 0.5)),
    "clamped by its mean": (GRIDS, 1, lambda x: torch.minimum(x, x.mean((2,), keepdim=True))),
    "pixel shuffle": (("image",), 4, lambda x: F.pixel_shuffle(x, 2)),
    "depth to space": (
        ("image",), 4,
        lambda x: x.unflatten(1, (2, 2, -1)).permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3),
    ),
    "pixel unshuffle": (("image",), 1, lambda x: F.pixel_unshuffle(_even(x), 2)),
    "space to depth": (
        ("image",), 1,
        lambda x: _even(x).unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 3, 5, 1, 2, 4).flatten(1, 3),
    ),
    "unfolded and folded": (("image",), 1, lambda x: F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1)),
    "swap sides": (("image",), 1, lambda x: x.transpose(2, 3)),
    "rotated": (("image",), 1, lambda x: x.rot90(1, (2, 3))),
    "split heads": (ROWS, 4, lambda x: x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)),
    "last flipped": (ROWS, 1, lambda x: x.flip(-1)),
    "last chunk gate": (ROWS, 2, lambda x: (lambda a, b: F.silu(a) * b)(*x.chunk(2, -1))),
    "last glu": (ROWS, 2, F.glu),
    "last slice": (ROWS, 2, lambda x: x[..., :-1]),
    "doubled": (ROWS, 1, lambda x: torch.cat([x, x], -1)),
    "stacked": (ROWS, 1, lambda x: torch.stack([x, x.neg()], -1).flatten(-2)),
    "channels sorted": (ROWS, 1, lambda x: x.sort(-1).values),
    "numbered": (ROWS, 1, lambda x: x * torch.arange(1, x.shape[-1] + 1, device=x.device)),
    "divided by the root of the width": (ROWS, 1, lambda x: x * x.shape[-1] ** -0.5),
    "divided by the width": (ROWS, 1, lambda x: x / x.shape[-1]),
    "last rotated": (("tokens",), 2, lambda x: x + (lambda a, b: torch.cat([-b, a], -1))(*x.chunk(2, -1))),
    "rolled tokens": (("tokens",), 1, lambda x: x.roll(1, 1)),
    "tokens flipped": (("tokens",), 1, lambda x: x.flip(1)),
    "one token dropped": (("tokens",), 1, lambda x: x[:, :-1] if x.shape[1] > 2 else x),
    "cumulative": (("tokens",), 1, lambda x: x.cumsum(1)),
    "products of tokens": (("tokens",), 1, lambda x: (x @ x.mT) @ x),
    "products of channels": (("tokens",), 1, lambda x: x @ (x.mT @ x)),
    "spectrum of tokens": (("tokens",), 1, lambda x: torch.fft.fft(x, dim=1).real),
}  # fmt: skip
WIDER = ("repeat", "repeat interleaved", "doubled", "stacked", "pixel unshuffle", "space to depth")
LEAST_SIDE = {"crop": 3, "sliding windows": 2, "pixel unshuffle": 2, "space to depth": 2}
COUNTING = ("divided by the root of the width", "divided by the width", "sum divided by the width")


class Move(Piece):
    """Data movements and small functions of one tensor, named in `MOVES`."""

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any] | None:
        fitting = [name for name, (kinds, by, _) in MOVES.items() if x[0].kind in kinds and x[0].channels % by == 0]
        wide = x[0].channels > WIDEST // 2
        fitting = [n for n in fitting if x[0].side >= LEAST_SIDE.get(n, 0) and not (wide and n in WIDER)]
        fitting = [name for name in fitting if name != "indexed" or x[0].channels == 3]
        return {"which": pick(fitting)}

    def __init__(self, x: Live, which: str) -> None:
        super().__init__()
        self.which = which

    def forward(self, x: Tensor) -> Tensor:
        return MOVES[self.which][2](x)


# with the number of channels, and their axis, written in the code
WRITTEN: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "view": lambda x, c, axis: x.reshape(*x.shape[:axis], c, *x.shape[axis + 1 :]),
    "rows": lambda x, c, axis: x.movedim(axis, -1).reshape(-1, c).view(x.movedim(axis, -1).shape).movedim(-1, axis),
    "split": lambda x, c, axis: torch.cat(x.split([1, c - 1], axis)[::-1], axis),
    "ones": lambda x, c, axis: x * torch.ones(c, device=x.device).view(-1, *[1] * (x.ndim - 1 - axis)),
    "half": lambda x, c, axis: x.narrow(axis, 0, c // 2),
    "blocks": lambda x, c, axis: x.unflatten(axis, (-1, c)).flatten(axis, axis + 1),
    "assert": lambda x, c, axis: x if x.shape[axis] == c else x * 2,
}


class Written(Piece):
    """Sizes that are numbers in the code: what they count is refused by name, never broken."""

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"which": pick([*WRITTEN])}

    def __init__(self, x: Live, which: str) -> None:
        super().__init__()
        channels, axis = x.channels, x.axis
        self.run = lambda tensor: WRITTEN[which](tensor, channels, axis)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


class ToVector(Piece):
    """The end of a grid or of tokens: flattened, averaged, the first token."""

    takes = (*GRIDS, "tokens")
    gives = "vector"

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        which = ["mean", "max", "first", "last"] + (["flatten", "reshape"] if math.prod(x[0].shape[1:]) <= 600 else [])
        return {"which": pick(which)}

    def __init__(self, x: Live, which: str) -> None:
        super().__init__()
        self.which, self.tokens = which, x.kind == "tokens"

    def forward(self, x: Tensor) -> Tensor:
        grid = x.transpose(1, 2) if self.tokens else x.flatten(2)
        match self.which:
            case "mean":
                return grid.mean(2)
            case "max":
                return grid.amax(2)
            case "first":
                return grid[:, :, 0]
            case "last":
                return grid.select(2, -1)
            case "flatten":
                return x.flatten(1)
        return x.reshape(x.shape[0], -1)


class ToTokens(Piece):
    """Positions of a grid become tokens; windows of an image, unfolded, too."""

    takes = GRIDS
    gives = "tokens"

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        unfold = x[0].kind == "image" and x[0].channels * 4 <= 48 and x[0].side >= 2
        return {"unfold": pick([False, True]) if unfold else False}

    def __init__(self, x: Live, unfold: bool) -> None:
        super().__init__()
        self.unfold = unfold

    def forward(self, x: Tensor) -> Tensor:
        return (F.unfold(x, 2, stride=2) if self.unfold else x.flatten(2)).transpose(1, 2)


class ToGrid(Piece):
    """Tokens become a signal or an image; a vector's channels are split into channels and positions."""

    takes = ("tokens", "vector")

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any] | None:
        if x[0].kind == "tokens":
            side = math.isqrt(x[0].shape[1])
            return {"kind": pick(["signal", "image"] if side * side == x[0].shape[1] else ["signal"])}
        return {"kind": pick(["signal", "image"])} if x[0].channels % 4 == 0 else None

    def __init__(self, x: Live, kind: str) -> None:
        super().__init__()
        self.takes_tokens, self.kind = x.kind == "tokens", kind

    def forward(self, x: Tensor) -> Tensor:
        if self.takes_tokens:
            x = x.transpose(1, 2)
            return x if self.kind == "signal" else x.unflatten(2, (math.isqrt(x.shape[2]), -1))
        return x.unflatten(1, (-1, 4) if self.kind == "signal" else (-1, 2, 2))
