"""Pieces of random networks that mix tokens: attention of every kind, mixers, gated and recurrent layers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from random_pieces import Live, Pick, Piece, divisors
from torch import Tensor, nn

MANY_HEADS = (
    "grouped", "grouped fused", "one key", "causal", "linear", "over channels", "cosine", "biased", "masked",
)  # fmt: skip


class Attention(Piece):
    """Self-attention: fused or separate, PyTorch's own, of few keys, over channels, with a bias, linear."""

    takes = ("tokens",)

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        which = pick(["separate", "fused", "torch", "encoder", "plain", "sizes in attributes", *MANY_HEADS])
        inner = x[0].channels if which in ("torch", "encoder") else pick([4, 6, 8, 12])
        heads = {"grouped": pick([2, 4]), "grouped fused": pick([2, 4]), "plain": 1}.get(which)
        heads = heads or pick([d for d in divisors(inner) if d <= 4])
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
            few = {"grouped": inner // 2, "grouped fused": inner // 2, "one key": self.head_dim}.get(which, inner)
            self.q, self.k, self.v = (nn.Linear(x.channels, n) for n in (inner, few, few))
        if which == "biased":
            places = torch.arange(x.shape[1])
            self.register_buffer("places", places[:, None] - places + x.shape[1] - 1)
            self.bias = nn.Parameter(torch.zeros(2 * x.shape[1] - 1, heads))
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
                few = {"grouped": self.num_heads // 2, "grouped fused": self.num_heads // 2, "one key": 1}
                heads = few.get(self.which, self.num_heads)
                q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
                k, v = (f(x).unflatten(-1, (heads, -1)).transpose(1, 2) for f in (self.k, self.v))
                y = self.mix(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries, keys and values [n, heads, t, d], the keys' and values' heads perhaps fewer."""
        match self.which:
            case "grouped":
                k, v = (y.repeat_interleave(2, 1) for y in (k, v))
            case "grouped fused":
                return F.scaled_dot_product_attention(q, k, v, scale=0.5, enable_gqa=True)
            case "causal":
                return F.scaled_dot_product_attention(q, k, v, scale=0.5, is_causal=True)
            case "linear":
                return q.softmax(-1) @ (k.softmax(-2).mT @ v)
            case "over channels":
                q, k = F.normalize(q, dim=-2), F.normalize(k, dim=-2)
                return ((q.mT @ k).softmax(-1) @ v.mT).mT
            case "cosine":
                q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
            case "biased":
                scores = q @ k.mT * 0.5 + self.bias[self.places].permute(2, 0, 1)
                return scores.softmax(-1) @ v
            case "masked":
                later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
                return (q @ k.mT * 0.5).masked_fill(later, -1e9).softmax(-1) @ v
        return (q @ k.mT * 0.5).softmax(-1) @ v


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


class Windows(Piece):
    """Attention within windows of an image, shifted or not, as in Swin."""

    takes = ("image",)

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any] | None:
        even = x[0].shape[2] % 2 == 0 and x[0].shape[3] % 2 == 0
        return {"shift": pick([True, False]), "inner": pick([3, 4])} if even else None

    def __init__(self, x: Live, shift: bool, inner: int) -> None:
        super().__init__()
        self.shift = shift
        self.qkv, self.out = nn.Linear(x.channels, 3 * inner), nn.Linear(inner, x.channels)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = x.permute(0, 2, 3, 1)
        if self.shift:
            y = y.roll((-1, -1), (1, 2))
        y = y.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(y).chunk(3, -1)
        y = self.out((q @ k.mT * 0.5).softmax(-1) @ v)
        y = y.view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        if self.shift:
            y = y.roll((1, 1), (1, 2))
        return x + y.permute(0, 3, 1, 2)


class TokenMixing(Piece):
    """A small perceptron along the tokens, as in a mixer."""

    takes = ("tokens",)
    silent = False

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"width": pick(range(2, 9)), "added": pick([True, False])}

    def __init__(self, x: Live, width: int, added: bool) -> None:
        super().__init__()
        self.up, self.down, self.added = nn.Linear(x.shape[1], width), nn.Linear(width, x.shape[1]), added

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.gelu(self.up(x.transpose(1, 2)))).transpose(1, 2)
        return x + y if self.added else y


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
