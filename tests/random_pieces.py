"""The pieces of random networks: small modules, each of which takes one or two live tensors and gives another.

Images are [N, C, H, W], signals [N, C, L], volumes [N, C, D, H, W], tokens [N, T, C], vectors [N, C]. A piece is made
for the shapes of its sources; its options are drawn so that it fits them. Sizes in `forward` are read from shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDEST = 12
POSITIONS = {"signal": 1, "image": 2, "volume": 3}
GRIDS = (*POSITIONS,)
KINDS = (*GRIDS, "tokens", "vector")

Pick = Callable[[Sequence[Any]], Any]


class Live(NamedTuple):
    """A tensor that steps may use: what it is, and its shape."""

    kind: str
    shape: tuple[int, ...]

    @property
    def axis(self) -> int:
        """Where the channels are."""
        return 2 if self.kind == "tokens" else 1

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    @property
    def side(self) -> int:
        """The shortest side of a grid, or how many tokens."""
        return min(self.shape[2:]) if self.kind in GRIDS else self.shape[1]

    def along_channels(self) -> list[int]:
        """Shape of one number a channel that broadcasts."""
        return [-1 if d == self.axis else 1 for d in range(1, len(self.shape))]


class Piece(nn.Module):
    """A step's module. `takes` and `gives` are kinds, `gives` None where the kind stays."""

    takes: ClassVar[tuple[str, ...]] = KINDS
    gives: ClassVar[str | None] = None
    sources: ClassVar[int] = 1
    silent: ClassVar[bool] = True  # a unit of zeros stays one of zeros

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any] | None:
        """Options that fit these sources, None if there are none."""
        return {}


def divisors(n: int, least: int = 1) -> list[int]:
    return [d for d in range(least, n + 1) if n % d == 0]


def like(kind: str, image_class: str) -> Any:
    """`Conv` -> nn.Conv2d for images, ..."""
    return getattr(nn, f"{image_class}{POSITIONS[kind]}d")


class Conv(Piece):
    """Convolutions, grouped, dilated, strided, weight-normed."""

    takes = GRIDS

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        groups = pick([1, 1, *divisors(x[0].channels)])
        return {
            "width": groups * pick(range(1 if groups > 1 else 2, max(3, WIDEST // groups + 1))),
            "groups": groups,
            "size": pick([1, 3]),
            "stride": pick([1, 1, 2]) if x[0].side >= 4 else 1,
            "dilation": pick([1, 1, 2]),
            "bias": pick([True, False]),
            "padding": pick(["zeros", "zeros", "zeros", "reflect", "replicate", "circular"])
            if x[0].side >= 3
            else "zeros",
        }

    def __init__(
        self, x: Live, width: int, groups: int, size: int, stride: int, dilation: int, bias: bool, padding: str
    ) -> None:
        super().__init__()
        self.conv = like(x.kind, "Conv")(
            x.channels, width, size, stride, dilation * (size // 2), dilation, groups, bias, padding
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Linear(Piece):
    """A linear layer along the channels."""

    takes = ("tokens", "vector")

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"width": pick(range(2, WIDEST + 1)), "bias": pick([True, False]), "how": pick(["layer", "einsum", "@"])}

    def __init__(self, x: Live, width: int, bias: bool, how: str) -> None:
        super().__init__()
        self.fc = nn.Linear(x.channels, width, bias)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "layer":
            return self.fc(x)
        y = torch.einsum("...c,dc->...d", x, self.fc.weight) if self.how == "einsum" else x @ self.fc.weight.T
        return y if self.fc.bias is None else y + self.fc.bias


class Norm(Piece):
    """Batch, group, instance, layer and RMS norm, PyTorch's and written by hand."""

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        known = {"tokens": ["layer", "rms", "rms by hand"], "vector": ["batch", "layer", "rms"]}
        grids = ["batch", "batch", "batch", "batch of now", "group", "instance", "layer", "response"]
        which = pick(known.get(x[0].kind, grids))
        if which == "instance" and math.prod(x[0].shape[2:]) == 1:
            which = "batch"
        groups = pick(divisors(x[0].channels)) if which == "group" else 1
        return {"which": which, "groups": groups, "affine": pick([True, True, False])}

    def __init__(self, x: Live, which: str, groups: int, affine: bool) -> None:
        super().__init__()
        last = x.kind in GRIDS and which == "layer"
        self.order = [0, *range(2, len(x.shape)), 1] if last else None
        match which:
            case "response":
                self.norm = Response(x)
            case "rms by hand":
                self.norm = RootMeanSquare(x)
            case "batch of now":
                self.norm = like(x.kind, "BatchNorm")(x.channels, affine=affine, track_running_stats=False)
            case "batch":
                kind = "signal" if x.kind == "vector" else x.kind
                self.norm = like(kind, "BatchNorm")(x.channels, affine=affine)
            case "instance":
                self.norm = like(x.kind, "InstanceNorm")(x.channels, affine=affine, track_running_stats=not affine)
            case "group":
                self.norm = nn.GroupNorm(groups, x.channels, affine=affine)
            case "layer":
                self.norm = nn.LayerNorm(x.channels, elementwise_affine=affine)
            case "rms":
                self.norm = nn.RMSNorm(x.channels, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        if self.order is None:
            return self.norm(x)
        return self.norm(x.permute(self.order)).permute(0, -1, *range(1, x.ndim - 1))


class RootMeanSquare(nn.Module):
    """RMS norm of the last axis, written by hand."""

    def __init__(self, x: Live) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(x.channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3) * self.gamma


class Response(nn.Module):
    """Global response norm: each channel by its share of the mean of all."""

    def __init__(self, x: Live) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.zeros(x.channels).view(x.along_channels())) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(2, [*range(2, x.ndim)], keepdim=True)
        return x + self.gamma * x * (size / (size.mean(1, keepdim=True) + 1e-3)) + self.beta


class PositionNorm(Piece):
    """A layer norm over the positions of each channel."""

    takes = GRIDS
    silent = False  # its shift is one a position

    def __init__(self, x: Live) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(x.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh, "leaky": F.leaky_relu, "elu": F.elu,
    "hardswish": F.hardswish, "mish": F.mish, "relu6": F.relu6, "square": torch.square, "abs": torch.abs,
    "inplace": lambda x: F.relu(x * 2, inplace=True), "softsign": F.softsign, "shrink": F.softshrink,
}  # fmt: skip
LOUD: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid, "softplus": F.softplus, "cos": torch.cos, "hardsigmoid": F.hardsigmoid,
    "exp": lambda x: (-x.square()).exp(), "plus one": lambda x: x + 1, "logsigmoid": F.logsigmoid,
}  # fmt: skip


class Activation(Piece):
    """Activations that keep zero."""

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"which": pick([*ACTIVATIONS])}

    def __init__(self, x: Live, which: str) -> None:
        super().__init__()
        self.which = which

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.which](x)


class Loud(Piece):
    """Activations that make something of zero."""

    silent = False

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"which": pick([*LOUD])}

    def __init__(self, x: Live, which: str) -> None:
        super().__init__()
        self.which = which

    def forward(self, x: Tensor) -> Tensor:
        return LOUD[self.which](x)


class PReLU(Piece):
    """An activation with parameters, one or one a channel."""

    takes = (*GRIDS, "vector")

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"each": pick([True, False])}

    def __init__(self, x: Live, each: bool) -> None:
        super().__init__()
        self.act = nn.PReLU(x.channels if each else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


class Pool(Piece):
    """Pooling, padding, resampling: positions change and channels stay."""

    takes = GRIDS

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any] | None:
        which = ["adaptive average", "adaptive max", "zeros"]
        which += ["max", "average", "reflect", "replicate"] if x[0].side >= 3 else []
        which += ["nearest", "linear", "sized"] if x[0].side <= 4 else []
        return {"which": pick(which)}

    def __init__(self, x: Live, which: str) -> None:
        super().__init__()
        self.which, self.ndim = which, POSITIONS[x.kind]

    def forward(self, x: Tensor) -> Tensor:
        n = self.ndim
        linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[n]
        match self.which:
            case "max":
                return getattr(F, f"max_pool{n}d")(x, 2, ceil_mode=True)
            case "average":
                return getattr(F, f"avg_pool{n}d")(x, 3, 1, 1)
            case "adaptive average":
                return getattr(F, f"adaptive_avg_pool{n}d")(x, 2)
            case "adaptive max":
                return getattr(F, f"adaptive_max_pool{n}d")(x, 2)
            case "nearest":
                return F.interpolate(x, scale_factor=2)
            case "linear":
                return F.interpolate(x, scale_factor=1.5, mode=linear, align_corners=False)
            case "sized":
                return F.interpolate(x, x.shape[2:], mode=linear, align_corners=True)
            case "zeros":
                return F.pad(x, [1, 0] * n)
        return F.pad(x, [1, 1] * n, mode=self.which)
