"""Pieces of random networks: convolutions of every kind but the plain one."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from random_pieces import GRIDS, POSITIONS, WIDEST, Live, Pick, Piece, divisors, like
from torch import Tensor, nn


class Transposed(Piece):
    """Transposed convolutions, grouped or not, of stride 1 or 2."""

    takes = GRIDS

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        groups = pick([1, *divisors(x[0].channels)])
        return {
            "width": groups * pick(range(1 if groups > 1 else 2, max(3, WIDEST // groups + 1))),
            "groups": groups,
            "stride": pick([1, 2]) if x[0].side <= 4 else 1,
            "bias": pick([True, False]),
        }

    def __init__(self, x: Live, width: int, groups: int, stride: int, bias: bool) -> None:
        super().__init__()
        kernel = {1: 3, 2: 2}[stride]
        self.conv = like(x.kind, "ConvTranspose")(
            x.channels, width, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Depthwise(Piece):
    """One or several filters a channel, and the 1 x 1 convolution that usually follows."""

    takes = GRIDS

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"times": pick(range(1, max(2, WIDEST // x[0].channels + 1))), "then": pick([None, 4, 6])}

    def __init__(self, x: Live, times: int, then: int | None) -> None:
        super().__init__()
        wide = x.channels * times
        self.depthwise = like(x.kind, "Conv")(x.channels, wide, 3, padding=1, groups=x.channels)
        self.pointwise = like(x.kind, "Conv")(wide, then, 1) if then else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class NormedConv(Piece):
    """A convolution with a weight norm, as a parametrisation or as a hook."""

    takes = GRIDS

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"width": pick(range(2, 9)), "hook": pick([True, False])}

    def __init__(self, x: Live, width: int, hook: bool) -> None:
        super().__init__()
        normed = nn.utils.weight_norm if hook else nn.utils.parametrizations.weight_norm
        with warnings.catch_warnings(action="ignore"):
            self.conv = normed(like(x.kind, "Conv")(x.channels, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Kernels(Piece):
    """Convolutions whose weights are worked out of others: of two branches, standardised, of low rank, by experts."""

    takes = GRIDS

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"width": pick(range(2, 9)), "which": pick(["branches", "standardised", "low rank", "experts"])}

    def __init__(self, x: Live, width: int, which: str) -> None:
        super().__init__()
        self.which, self.ndim = which, POSITIONS[x.kind]
        one = [1] * self.ndim
        self.weight = nn.Parameter(torch.zeros(width, x.channels, *[3] * self.ndim))
        match which:
            case "branches":
                self.small = nn.Parameter(torch.zeros(width, x.channels, *one))
            case "low rank":
                self.down = nn.Parameter(torch.zeros(2, x.channels))
                self.up = nn.Parameter(torch.zeros(width, 2))
            case "experts":
                self.gate = nn.Linear(x.channels, 3)
                self.experts = nn.Parameter(torch.zeros(3, width, x.channels))

    def forward(self, x: Tensor) -> Tensor:
        convolve, weight, n = getattr(F, f"conv{self.ndim}d"), self.weight, self.ndim
        match self.which:
            case "branches":
                weight = weight + F.pad(self.small, [1, 1] * n)
            case "standardised":
                axes = [*range(1, weight.ndim)]
                mean, var = weight.mean(axes, keepdim=True), weight.var(axes, keepdim=True)
                weight = (weight - mean) / (var + 1e-3).sqrt()
            case "low rank":
                weight = weight + (self.up @ self.down).view(*weight.shape[:2], *[1] * n)
            case "experts":
                gates = self.gate(x.flatten(2).mean(2)).softmax(1)
                y = torch.einsum("ne,eoi,nip->nop", gates, self.experts, x.flatten(2))
                return y.unflatten(2, x.shape[2:]) + convolve(x, weight, padding=1)
        return convolve(x, weight, padding=1)
