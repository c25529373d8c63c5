"""What works place by place or over positions: activations, padding, pooling, resampling, unfolding, transforms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from handmade import FEATURES, IMAGE, TOKENS, Case, Net, between, check, conv, mlp, normed, parameter, pooled, simple
from torch import Tensor, nn

from prunecli.surgery import trace

ACTIVATIONS = {
    "prelu of one slope": nn.PReLU(),
    "prelu of many slopes": nn.PReLU(8),
    "gelu": nn.GELU(),
    "hardswish in place": nn.Hardswish(inplace=True),
    "silu in place": nn.SiLU(inplace=True),
    "elu in place": nn.ELU(inplace=True),
    "leaky relu in place": nn.LeakyReLU(inplace=True),
    "hardtanh in place": nn.Hardtanh(inplace=True),
    "mish in place": nn.Mish(inplace=True),
    "celu": nn.CELU(),
    "soft shrink": nn.Softshrink(),
    "tanh": nn.Tanh(),
    "dropout": nn.Dropout2d(0.0),
    "upsampling": nn.Upsample(scale_factor=2, mode="bicubic"),
    "replication": nn.ReplicationPad2d(1),
    "circular": nn.CircularPad2d(1),
    "zeros": nn.ZeroPad2d((1, 0, 2, 1)),
    "power pooling": nn.LPPool2d(2, 2),
    "average pooling": nn.AvgPool2d(3, 2, 1),
    "adaptive pooling": nn.AdaptiveMaxPool2d(2),
    "pixel unshuffle and shuffle": nn.Sequential(nn.PixelUnshuffle(2), nn.PixelShuffle(2)),
    "unfold and fold": nn.Sequential(nn.Unfold(3, padding=1), nn.Fold((6, 6), 3, padding=1)),
    "identity": nn.Identity(),
}

NOT_ZERO = {
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "exp": torch.exp,
    "cosine": torch.cos,
    "hard sigmoid": F.hardsigmoid,
    "log sigmoid": F.logsigmoid,
    "shifted": lambda x: x + 1.5,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_modules_between_convolutions(name: str) -> None:
    check(Case(normed(ACTIVATIONS[name]), IMAGE, {"a", "b"}))


@pytest.mark.parametrize("name", NOT_ZERO)
def test_activations_that_make_something_of_nothing(name: str) -> None:
    check(Case(simple(NOT_ZERO[name]), IMAGE, {"a", "b"}, dead=False))


def _unpool(x: Tensor) -> Tensor:
    y, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(y.relu(), places, 2)


def _sample(x: Tensor) -> Tensor:
    grid = torch.rand(2, 4, 4, 2, dtype=x.dtype, device=x.device) * 2 - 1
    return F.grid_sample(x, grid.detach().fill_(0.3), align_corners=False)


def _spectrum(x: Tensor) -> Tensor:
    """The global filter of GFNet, less its weights."""
    y = torch.fft.rfft2(x, norm="ortho")
    return torch.fft.irfft2(y * 0.5, s=x.shape[-2:], norm="ortho")


def _filtered(n: Net, x: Tensor) -> Tensor:
    y = torch.fft.rfft2(n.a(x), norm="ortho") * torch.view_as_complex(n.filters)
    return pooled(n, n.b(torch.fft.irfft2(y, s=(6, 6), norm="ortho")))


def _rotary(x: Tensor) -> Tensor:
    """Rotates pairs of channels that lie side by side."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * 1j).flatten(-2)


CASES = {
    "interpolate, area": Case(simple(lambda x: F.interpolate(x, size=(4, 4), mode="area")), IMAGE, {"a", "b"}),
    "interpolate, nearest": Case(simple(lambda x: F.interpolate(x, scale_factor=2)), IMAGE, {"a", "b"}),
    "interpolate in 1-D and 3-D": Case(
        Net(lambda n, x: n.fc(F.interpolate(F.interpolate(n.a(x), size=4, mode="linear")[..., None, None],
                                            size=(3, 2, 2), mode="trilinear").mean((2, 3, 4))),
            a=nn.Conv1d(5, 8, 3), fc=nn.Linear(8, 4)),
        TOKENS, {"a"},
    ),
    "unpooling": Case(simple(_unpool), IMAGE, {"a", "b"}),
    "sampling": Case(simple(_sample), IMAGE[:2], {"a", "b"}),
    "spectrum": Case(simple(_spectrum), IMAGE, {"a", "b"}),
    "filters in the spectrum": Case(
        Net(_filtered, a=conv(3, 8), b=conv(8, 6), fc=nn.Linear(6, 4), filters=parameter(8, 6, 4, 2)),
        IMAGE, {"a", "b"},
    ),
    "pairs of channels": Case(mlp(_rotary), TOKENS, {"a"}),
    "windows": Case(simple(lambda x: x.unfold(2, 3, 1).mean(-1)), IMAGE, {"a", "b"}),
    "window partition": Case(
        mlp(lambda x: x[:, :4].unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2)), TOKENS, {"a"}
    ),
    "unfold by hand": Case(
        Net(lambda n, x: n.fc((n.w.flatten(1) @ F.unfold(n.a(x), 3)).mean(-1)), a=conv(3, 8),
            w=parameter(6, 8, 3, 3), fc=nn.Linear(6, 4)),
        IMAGE, {"a", ""},
    ),
    "channel shuffle": Case(simple(lambda x: F.channel_shuffle(x, 4)), IMAGE, {"a", "b"}),
    "module of channel shuffle": Case(normed(nn.ChannelShuffle(2)), IMAGE, {"a", "b"}),
    "rotation": Case(simple(lambda x: x.rot90(1, (2, 3)).roll(1, 2)), IMAGE, {"a", "b"}),
    "repeated channels": Case(between(lambda x: x.repeat_interleave(2, 1), 16), IMAGE, {"a", "b"}),
    "repeated whole": Case(between(lambda x: x.repeat(1, 2, 1, 1), 16), IMAGE, {"a", "b"}),
    "expanded": Case(
        Net(lambda n, x: n.fc(n.a(x)[:, None].expand(-1, 3, -1).flatten(1)), a=nn.Linear(12, 8), fc=nn.Linear(24, 4)),
        FEATURES, {"a"},
    ),
    "cumulated over positions": Case(simple(lambda x: x.cumsum(2)), IMAGE, {"a", "b"}),
    "lower triangle of positions": Case(simple(lambda x: x.tril()), IMAGE, {"a", "b"}),
    "differences of positions": Case(simple(lambda x: x.diff(dim=3)), IMAGE, {"a", "b"}),
    "buffer as a scale": Case(
        Net(lambda n, x: pooled(n, n.b(n.a(x) * n.scale[:, None, None])), a=conv(3, 8), b=conv(8, 6),
            fc=nn.Linear(6, 4), scale=torch.rand(8)),
        IMAGE, {"a", "b"},
    ),
    "gate of two layers": Case(
        Net(lambda n, x: n.fc(F.silu(n.gate(x)) * n.up(x)), gate=nn.Linear(12, 8), up=nn.Linear(12, 8),
            fc=nn.Linear(8, 4)),
        TOKENS, {"gate", "up"},
    ),
    "grouped in 1-D, transposed in 3-D": Case(
        Net(lambda n, x: n.fc(n.c(n.b(n.a(x))[:, :, None, None]).mean((2, 3, 4))), a=nn.Conv1d(5, 8, 3),
            b=nn.Conv1d(8, 12, 3, groups=2), c=nn.ConvTranspose3d(12, 6, 2, groups=3), fc=nn.Linear(6, 4)),
        TOKENS, {"a", "b", "c"},
    ),
    "depthwise and transposed": Case(
        Net(lambda n, x: pooled(n, n.b(n.u(n.a(x)))), a=conv(3, 8), u=nn.ConvTranspose2d(8, 8, 2, 2, groups=8),
            b=conv(8, 6, padding_mode="circular"), fc=nn.Linear(6, 4)),
        IMAGE, {"a", "b"},
    ),
    "convolution of the same size": Case(
        Net(lambda n, x: pooled(n, n.b(n.a(x))), a=nn.Conv2d(3, 8, 3, padding="same"), b=conv(8, 6),
            fc=nn.Linear(6, 4)),
        IMAGE, {"a", "b"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_positions(name: str) -> None:
    check(CASES[name])


# name -> network, part of the reason
FROZEN = {
    "windows of channels": (between(lambda x: x.unfold(1, 8, 1)[..., 0].repeat(1, 8, 1, 1)), "unfold"),
    "sorted channels": (simple(lambda x: x.sort(1).values), "sort"),
    "cumulated channels": (simple(lambda x: x.cumsum(1)), "cumsum"),
    "best channels": (between(lambda x: x.topk(2, 1).values, 2), "topk"),
    "spectrum of channels": (simple(lambda x: torch.fft.fft(x, dim=1).real), "fft"),
    "local response": (simple(lambda x: F.local_response_norm(x, 3)), ""),
    "product of channels": (between(lambda x: x.prod(1, keepdim=True), 1), "prod"),
    "lower triangle": (
        Net(lambda n, x: n.fc(n.a(x).tril()), a=nn.Linear(12, 8), fc=nn.Linear(8, 4)), "tril",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FROZEN)
def test_channels_in_an_order_are_frozen(name: str) -> None:
    network, reason = FROZEN[name]
    structure = trace(network, IMAGE if isinstance(network.a, nn.Conv2d) else TOKENS)
    assert not structure.group_of("a").prunable
    assert reason in structure.frozen["a"]
