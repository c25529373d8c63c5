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


def _like(kind: str, image_class: str) -> Any:
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
        }

    def __init__(self, x: Live, width: int, groups: int, size: int, stride: int, dilation: int, bias: bool) -> None:
        super().__init__()
        self.conv = _like(x.kind, "Conv")(
            x.channels, width, size, stride, dilation * (size // 2), dilation=dilation, groups=groups, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


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
        self.conv = _like(x.kind, "ConvTranspose")(
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
        self.depthwise = _like(x.kind, "Conv")(x.channels, wide, 3, padding=1, groups=x.channels)
        self.pointwise = _like(x.kind, "Conv")(wide, then, 1) if then else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class NormedConv(Piece):
    """A weight-normed convolution."""

    takes = GRIDS

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        return {"width": pick(range(2, 9))}

    def __init__(self, x: Live, width: int) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(_like(x.kind, "Conv")(x.channels, width, 1))

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


class Norm(Piece):
    """Batch, group, instance, layer and RMS norm."""

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any]:
        known = {"tokens": ["layer", "rms"], "vector": ["batch", "layer", "rms"]}
        which = pick(known.get(x[0].kind, ["batch", "batch", "batch", "group", "instance", "layer"]))
        if which == "instance" and math.prod(x[0].shape[2:]) == 1:
            which = "batch"
        groups = pick(divisors(x[0].channels)) if which == "group" else 1
        return {"which": which, "groups": groups, "affine": pick([True, True, False])}

    def __init__(self, x: Live, which: str, groups: int, affine: bool) -> None:
        super().__init__()
        last = x.kind in GRIDS and which == "layer"
        self.order = [0, *range(2, len(x.shape)), 1] if last else None
        match which:
            case "batch":
                kind = "signal" if x.kind == "vector" else x.kind
                self.norm = _like(kind, "BatchNorm")(x.channels, affine=affine)
            case "instance":
                self.norm = _like(x.kind, "InstanceNorm")(x.channels, affine=affine, track_running_stats=not affine)
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
    "max of two": (GRIDS, 2, lambda x: x.unflatten(1, (-1, 2)).amax(2)),
    "norm": (GRIDS, 1, lambda x: x / (x.square().mean((0, *range(2, x.ndim)), keepdim=True) + 1).sqrt()),
    "standardised": (GRIDS, 1, lambda x: x / (x.std((0, *range(2, x.ndim)), keepdim=True) + 1)),
    "soft-max of positions": (GRIDS, 1, lambda x: x * x.flatten(2).softmax(2).view_as(x)),
    "soft-max of channels": (GRIDS, 1, lambda x: x * x.softmax(1)),
    "mean subtracted": (GRIDS, 1, lambda x: x - x.mean((2,), keepdim=True)),
    "mean of channels": (GRIDS, 1, lambda x: x * x.mean(1, keepdim=True).sigmoid()),
    "channels last": (GRIDS, 1, lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1)),
    "pixel shuffle": (("image",), 4, lambda x: F.pixel_shuffle(x, 2)),
    "swap sides": (("image",), 1, lambda x: x.transpose(2, 3)),
    "indexed": (GRIDS, 3, lambda x: x[:, torch.tensor([2, 0, 1], device=x.device)]),
    "written": (GRIDS, 1, lambda x: torch.zeros_like(x).copy_(x)),
    "masked": (GRIDS, 1, lambda x: torch.where(x > 0, x, x * 0.5)),
    "clamped by its mean": (GRIDS, 1, lambda x: torch.minimum(x, x.mean((2,), keepdim=True))),
    "split heads": (("tokens", "vector"), 4, lambda x: x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)),
    "last flipped": (("tokens", "vector"), 1, lambda x: x.flip(-1)),
    "last chunk gate": (("tokens", "vector"), 2, lambda x: (lambda a, b: F.silu(a) * b)(*x.chunk(2, -1))),
    "last glu": (("tokens", "vector"), 2, F.glu),
    "last slice": (("tokens", "vector"), 2, lambda x: x[..., :-1]),
    "last rotated": (("tokens",), 2, lambda x: x + (lambda a, b: torch.cat([-b, a], -1))(*x.chunk(2, -1))),
    "rolled tokens": (("tokens",), 1, lambda x: x.roll(1, 1)),
    "tokens flipped": (("tokens",), 1, lambda x: x.flip(1)),
    "one token dropped": (("tokens",), 1, lambda x: x[:, :-1] if x.shape[1] > 2 else x),
    "doubled": (("tokens", "vector"), 1, lambda x: torch.cat([x, x], -1)),
    "stacked": (("tokens", "vector"), 1, lambda x: torch.stack([x, x.neg()], -1).flatten(-2)),
    "cumulative": (("tokens",), 1, lambda x: x.cumsum(1)),
    "channels sorted": (("tokens", "vector"), 1, lambda x: x.sort(-1).values),
}


class Move(Piece):
    """Data movements and small functions of one tensor, named in `MOVES`."""

    @classmethod
    def options(cls, pick: Pick, *x: Live) -> dict[str, Any] | None:
        fitting = [name for name, (kinds, by, _) in MOVES.items() if x[0].kind in kinds and x[0].channels % by == 0]
        if x[0].channels > WIDEST // 2:
            fitting = [name for name in fitting if "repeat" not in name and name not in ("doubled", "stacked")]
        if x[0].side < 3:
            fitting.remove("crop") if "crop" in fitting else None
        fitting = [name for name in fitting if name != "indexed" or x[0].channels == 3]
        return {"which": pick(fitting)}

    def __init__(self, x: Live, which: str) -> None:
        super().__init__()
        self.which = which

    def forward(self, x: Tensor) -> Tensor:
        return MOVES[self.which][2](x)
