"""More pieces of random networks: those that join tensors, change their kind, hold bare parameters, or attend."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from random_pieces import GRIDS, WIDEST, Live, Pick, Piece
from torch import Tensor, nn


def along(x: Live, out: int) -> nn.Module:
    """A product along the channels of `x`."""
    if x.kind in GRIDS:
        return {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(x.shape)](x.channels, out, 1)
    return nn.Linear(x.channels, out)


class Scale(Piece):
    """Bare parameters and buffers: layer scale, shifts, position embeddings, sizes that are followed by hand."""

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"which": pick(["layer scale", "buffer", "shift", "positions", "one", "unsaved", "running"])}

    def __init__(self, x: Live, which: str) -> None:
        super().__init__()
        shape = x.along_channels()
        values = torch.linspace(0.5, 1.5, x.channels).view(shape)
        self.which = which
        if which in ("buffer", "unsaved", "running"):
            self.register_buffer("scale", values, persistent=which != "unsaved")
        elif which == "positions":
            self.scale = nn.Parameter(torch.randn(1, *x.shape[1:]))
        else:
            self.scale = nn.Parameter(torch.ones(1) if which == "one" else values)

    def forward(self, x: Tensor) -> Tensor:
        if self.which == "running" and self.training:
            axes = [d for d, n in enumerate(self.scale.shape, x.ndim - self.scale.ndim) if n == 1]
            self.scale.mul_(0.9).add_(0.1 * x.detach().abs().mean([0, *axes]).view_as(self.scale))
        return x + self.scale if self.which in ("shift", "positions") else x * self.scale


class ClassToken(Piece):
    """A learned token in front, cut off with the others or kept."""

    takes = ("tokens",)

    def __init__(self, x: Live) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, x.channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)


class Excite(Piece):
    """Squeeze and excite, with a hidden layer; on tokens and vectors a gated hidden layer."""

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"hidden": pick(range(2, 7))}

    def __init__(self, x: Live, hidden: int) -> None:
        super().__init__()
        self.grid = x.kind in GRIDS
        self.down = along(x, hidden)
        self.up = along(Live(x.kind, (*x.shape[: x.axis], hidden, *x.shape[x.axis + 1 :])), x.channels)

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean([*range(2, x.ndim)], keepdim=True) if self.grid else x
        return x * torch.sigmoid(self.up(F.relu(self.down(y))))


class Tied(Piece):
    """Two layers of one weight: one after the other, or side by side."""

    takes = ("tokens", "vector")

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"how": pick(["after", "beside"])}

    def __init__(self, x: Live, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b = nn.Linear(x.channels, x.channels), nn.Linear(x.channels, x.channels, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x))) if self.how == "after" else self.a(x) + torch.tanh(self.b(x))


class Mirrored(Piece):
    """An encoder whose decoder is its transpose."""

    takes = ("tokens", "vector")
    silent = False  # its inputs' units are made once more, by the decoder

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"width": pick(range(2, 9)), "how": pick(["@", "linear", "conv"])}

    def __init__(self, x: Live, width: int, how: str) -> None:
        super().__init__()
        self.fc, self.how = nn.Linear(x.channels, width), how

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.fc(x))
        match self.how:
            case "@":
                return y @ self.fc.weight
            case "linear":
                return F.linear(y, self.fc.weight.t())
        return F.conv1d(y.reshape(-1, y.shape[-1], 1), self.fc.weight.t()[:, :, None]).view(x.shape)


class Branch(Piece):
    """One of two layers, by the data."""

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"width": pick(range(2, 7))}

    def __init__(self, x: Live, width: int) -> None:
        super().__init__()
        self.a, self.b = along(x, width), along(x, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.abs().sum() >= 0 else self.b(x)


class Embedding(Piece):
    """Words become tokens: alone, with positions, with a decoder of the same table; or a vector, their mean."""

    takes = ("words",)
    gives = "tokens"

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"width": pick(range(2, WIDEST + 1)), "which": pick(["alone", "alone", "positions", "decoded", "bag"])}

    def __init__(self, x: Live, width: int, which: str) -> None:
        super().__init__()
        self.which, self.kind = which, "vector" if which == "bag" else "tokens"
        self.words = nn.EmbeddingBag(10, width) if which == "bag" else nn.Embedding(10, width)
        if which == "positions":
            self.positions = nn.Embedding(x.shape[1], width)
        if which == "decoded":
            self.middle, self.decode = nn.Linear(width, width), nn.Linear(width, 10, bias=False)
            self.decode.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.words(x)
        match self.which:
            case "positions":
                return y + self.positions(torch.arange(x.shape[1], device=x.device))
            case "decoded":
                return self.decode(torch.tanh(self.middle(y)))
        return y


class Recurrent(Piece):
    """Recurrent layers and cells, which are left alone."""

    takes = ("tokens", "vector")
    silent = False

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"which": pick(["LSTM", "GRU", "RNN"]), "hidden": pick([2, 4]), "twice": pick([True, False])}

    def __init__(self, x: Live, which: str, hidden: int, twice: bool) -> None:
        super().__init__()
        self.tokens = x.kind == "tokens"
        if self.tokens:
            self.layer = getattr(nn, which)(x.channels, hidden, bidirectional=twice, batch_first=True)
        else:
            self.layer = getattr(nn, f"{which}Cell")(x.channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y[0] if isinstance(y, tuple) else y
