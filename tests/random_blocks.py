"""More pieces of random networks: those that join tensors, change their kind, hold bare parameters, or attend."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from random_pieces import GRIDS, WIDEST, Live, Pick, Piece, divisors
from torch import Tensor, nn


def _along(x: Live, out: int) -> nn.Module:
    """A product along the channels of `x`."""
    if x.kind in GRIDS:
        return {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(x.shape)](x.channels, out, 1)
    return nn.Linear(x.channels, out)


class Scale(Piece):
    """Bare parameters and buffers: layer scale, shifts, position embeddings."""

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"which": pick(["layer scale", "buffer", "shift", "positions", "one", "unsaved"])}

    def __init__(self, x: Live, which: str) -> None:
        super().__init__()
        shape = x.along_channels()
        values = torch.linspace(0.5, 1.5, x.channels).view(shape)
        self.which = which
        if which in ("buffer", "unsaved"):
            self.register_buffer("scale", values, persistent=which == "buffer")
        elif which == "positions":
            self.scale = nn.Parameter(torch.randn(1, *x.shape[1:]))
        else:
            self.scale = nn.Parameter(torch.ones(1) if which == "one" else values)

    def forward(self, x: Tensor) -> Tensor:
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
        self.down = _along(x, hidden)
        self.up = _along(Live(x.kind, (*x.shape[: x.axis], hidden, *x.shape[x.axis + 1 :])), x.channels)

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean([*range(2, x.ndim)], keepdim=True) if self.grid else x
        return x * torch.sigmoid(self.up(F.relu(self.down(y))))


class Gated(Piece):
    """A gated perceptron; its two inner layers are one or two."""

    takes = ("tokens", "vector")

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"hidden": pick(range(2, 9)), "fused": pick([True, False]), "added": pick([True, False])}

    def __init__(self, x: Live, hidden: int, fused: bool, added: bool) -> None:
        super().__init__()
        self.added = added
        self.up = nn.Linear(x.channels, 2 * hidden if fused else hidden)
        self.gate = None if fused else nn.Linear(x.channels, hidden, bias=False)
        self.down = nn.Linear(hidden, x.channels)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(x).chunk(2, -1) if self.gate is None else (self.up(x), self.gate(x))
        y = self.down(F.silu(a) * b)
        return x + y if self.added else y


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


class Attention(Piece):
    """Self-attention: fused or separate, PyTorch's own, of few keys, over channels."""

    takes = ("tokens",)

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        which = pick(["separate", "fused", "torch", "encoder", "grouped", "plain", "sizes in attributes"])
        inner = x[0].channels if which in ("torch", "encoder") else pick([4, 6, 8, 12])
        heads = {"grouped": pick([2, 4]), "plain": 1}.get(which) or pick([d for d in divisors(inner) if d <= 4])
        heads = heads if inner % heads == 0 else 2
        return {"which": which, "inner": inner, "heads": heads, "scale": pick([0.5, None])}

    def __init__(self, x: Live, which: str, inner: int, heads: int, scale: float | None) -> None:
        super().__init__()
        self.which, self.num_heads, self.head_dim, self.width = which, heads, inner // heads, inner
        self.scale = scale
        if which == "torch":
            self.attend = nn.MultiheadAttention(inner, heads, batch_first=True)
        elif which == "encoder":
            self.attend = nn.TransformerEncoderLayer(inner, heads, 6, dropout=0.0, batch_first=True)
        elif which == "fused":
            self.qkv = nn.Linear(x.channels, 3 * inner)
        else:
            few = inner // 2 if which == "grouped" else inner
            self.q, self.k, self.v = (nn.Linear(x.channels, n) for n in (inner, few, few))
        self.out = nn.Identity() if which in ("torch", "encoder") else nn.Linear(inner, 6)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        match self.which:
            case "torch":
                return self.attend(x, x, x, need_weights=False)[0]
            case "encoder":
                return self.attend(x)
            case "plain":
                weights = (self.q(x) @ self.k(x).mT / math.sqrt(t)).softmax(-1)
                return self.out(weights @ self.v(x))
            case "fused":
                q, k, v = self.qkv(x).view(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
                y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
            case "sizes in attributes":
                q, k, v = (
                    f(x).view(n, t, self.num_heads, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v)
                )
                y = (q @ k.mT * (self.scale or self.head_dim**-0.5)).softmax(-1) @ v
                return self.out(y.transpose(1, 2).reshape(n, t, self.width))
            case _:
                heads = self.num_heads // 2 if self.which == "grouped" else self.num_heads
                q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
                k, v = (f(x).unflatten(-1, (heads, -1)).transpose(1, 2) for f in (self.k, self.v))
                if self.which == "grouped":
                    k, v = (y.repeat_interleave(2, 1) for y in (k, v))
                y = (q @ k.mT * 0.5).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Branch(Piece):
    """One of two layers, by the data."""

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"width": pick(range(2, 7))}

    def __init__(self, x: Live, width: int) -> None:
        super().__init__()
        self.a, self.b = _along(x, width), _along(x, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.abs().sum() >= 0 else self.b(x)


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


class Embedding(Piece):
    """Words become tokens."""

    takes = ("words",)
    gives = "tokens"

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"width": pick(range(2, WIDEST + 1))}

    def __init__(self, x: Live, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(10, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.words(x)


class Join(Piece):
    """Two tensors of a kind and of the same positions: added, multiplied, concatenated; brought to one width first."""

    sources = 2

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any] | None:
        a, b = x
        which = pick(["+", "+", "cat", "cat", "*", "-", "gate", "max", "dot", "concatenated thrice"])
        if a.kind != b.kind or [n for d, n in enumerate(a.shape) if d != a.axis] != [
            n for d, n in enumerate(b.shape) if d != b.axis
        ]:
            return None
        if "cat" in which and a.channels + 2 * b.channels > 40:
            return None
        return {"which": which, "project": "cat" not in which and (a.channels != b.channels or pick([False, True]))}

    def __init__(self, a: Live, b: Live, which: str, project: bool) -> None:
        super().__init__()
        self.which, self.axis = which, a.axis
        self.project = _along(b, a.channels) if project else nn.Identity()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        b = self.project(b)
        match self.which:
            case "+":
                return a + b
            case "-":
                return a - 2 * b
            case "*":
                return a * b
            case "gate":
                return a * torch.sigmoid(b)
            case "max":
                return torch.maximum(a, b)
            case "dot":
                return a * (a * b).sum(self.axis, keepdim=True)
            case "cat":
                return torch.cat([a, b], self.axis)
        return torch.cat([b, a, b], self.axis)


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


class CrossAttention(Piece):
    """Tokens attend to other tokens."""

    takes = ("tokens",)
    sources = 2

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any] | None:
        return {"inner": pick([4, 6])} if x[1].kind == "tokens" else None

    def __init__(self, x: Live, to: Live, inner: int) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(x.channels, inner), nn.Linear(to.channels, inner), nn.Linear(to.channels, 5)

    def forward(self, x: Tensor, to: Tensor) -> Tensor:
        scores = torch.einsum("ntd,nsd->nts", self.q(x), self.k(to))
        return torch.einsum("nts,nsd->ntd", scores.softmax(-1), self.v(to))
