"""Normalisations and reductions: exact over other axes, said to change the function over the channels themselves."""

from __future__ import annotations

import warnings

import oracle
import pytest
import torch
import torch.nn.functional as F
from handmade import FEATURES, IMAGE, TOKENS, Case, Net, check, conv, mlp, normed, parameter, pooled, simple
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from prunecli.surgery import Plan, apply, trace

PAIRS = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(4)), TOKENS


def _by_hand(n: Net, x: Tensor) -> Tensor:
    """A layer norm over the channels of an image."""
    x = n.a(x)
    centred = x - x.mean(1, keepdim=True)
    x = centred * (centred.square().mean(1, keepdim=True) + 1e-5).rsqrt() * n.scale[:, None, None]
    return pooled(n, n.b(x))


def _by_moments(n: Net, x: Tensor) -> Tensor:
    x = n.a(x)
    variance, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
    return pooled(n, n.b((x - mean) / variance.add(1e-5).sqrt() + x.std(1, keepdim=True)))


class StandardisedConv2d(nn.Conv2d):
    """Weight standardisation, as ResNetV2 has it."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, len(self.weight), -1), None, None, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=1)


def _weighted(layer: nn.Module) -> Net:
    """A convolution whose weights are made of others, between two plain ones."""
    return Net(lambda n, x: pooled(n, n.c(n.b(n.a(x)))), a=conv(3, 8), b=layer, c=conv(6, 5), fc=nn.Linear(5, 4))


def _old_weight_norm(layer: nn.Module, dim: int | None = 0) -> nn.Module:
    with torch.no_grad(), warnings.catch_warnings(action="ignore", category=FutureWarning):
        return nn.utils.weight_norm(layer, dim=dim)


CASES = {
    "batch norm of features": Case(
        Net(lambda n, x: n.fc(n.norm(n.a(x)).relu()), a=nn.Linear(12, 8), norm=nn.BatchNorm1d(8, momentum=None),
            fc=nn.Linear(8, 4)),
        FEATURES, {"a"},
    ),
    "batch norm 3-D": Case(
        Net(lambda n, x: n.fc(n.norm(n.a(x[:, None])).mean((2, 3, 4))), a=nn.Conv3d(1, 8, 3, padding=1),
            norm=nn.BatchNorm3d(8), fc=nn.Linear(8, 4)),
        IMAGE, {"a"},
    ),
    "batch norm without scale": Case(normed(nn.BatchNorm2d(8, affine=False)), IMAGE, {"a", "b"}),
    "batch norm without statistics": Case(normed(nn.BatchNorm2d(8, track_running_stats=False)), IMAGE, {"a", "b"}),
    "batch norm of tokens": Case(mlp(nn.BatchNorm1d(5)), TOKENS, {"a"}, "normalises over channels"),
    "instance norm": Case(normed(nn.InstanceNorm2d(8, affine=True)), IMAGE, {"a", "b"}),
    "instance norm with statistics": Case(
        normed(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)), IMAGE, {"a", "b"}
    ),
    "layer norm over positions": Case(normed(nn.LayerNorm([6, 6])), IMAGE, {"a", "b"}, dead=False),
    "layer norm": Case(mlp(nn.LayerNorm(8)), TOKENS, {"a"}, "layer_norm in act normalises over channels"),
    "layer norm by hand": Case(
        Net(_by_hand, a=conv(3, 8), scale=parameter(8), b=conv(8, 6), fc=nn.Linear(6, 4)), IMAGE, {"a", "b"}, "mean in",
    ),
    "layer norm by moments": Case(
        Net(_by_moments, a=conv(3, 8), b=conv(8, 6), fc=nn.Linear(6, 4)), IMAGE, {"a", "b"}, "var_mean",
    ),
    "RMS norm": Case(mlp(nn.RMSNorm(8)), TOKENS, {"a"}, "rms_norm in act"),
    "RMS norm by hand": Case(
        mlp(lambda x: x * x.pow(2).mean(-1, keepdim=True).add(1e-5).rsqrt()), TOKENS, {"a"}, "mean in",
    ),
    "group norm": Case(normed(nn.GroupNorm(2, 8)), IMAGE, {"a", "b"}, "group_norm in norm"),
    "group norm of one group": Case(normed(nn.GroupNorm(1, 8)), IMAGE, {"a", "b"}, "group_norm in norm"),
    "mean over channels": Case(simple(lambda x: x * torch.sigmoid(x.mean(1, keepdim=True))), IMAGE, {"a", "b"}, "mean"),
    "sum of channels": Case(
        Net(lambda n, x: n.fc(n.b(n.a(x).relu().sum(1, keepdim=True)).mean((2, 3))), a=conv(3, 8), b=conv(1, 8),
            fc=nn.Linear(8, 4)),
        IMAGE, {"a", "b"},
    ),
    "sum of everything": Case(
        Net(lambda n, x: n.a(x).relu().sum() + n.fc(x.mean((2, 3))), a=conv(3, 8), fc=nn.Linear(3, 4)), IMAGE, {"a"},
    ),
    "unit length": Case(mlp(lambda x: F.normalize(x, dim=-1)), TOKENS, {"a"}, masked=False),
    "maximum norm": Case(mlp(lambda x: x / x.norm(torch.inf, dim=-1, keepdim=True)), TOKENS, {"a"}, masked=False),
    "cosine of tokens": Case(
        Net(lambda n, x, y: F.cosine_similarity(n.a(x), n.b(y), -1), a=nn.Linear(12, 8), b=nn.Linear(12, 8)),
        PAIRS, {"a", "b"},
    ),
    "maximum over positions": Case(
        Net(lambda n, x: n.fc(n.a(x).max(-1).values.amax(-1)), a=conv(3, 8), fc=nn.Linear(8, 4)), IMAGE, {"a"},
    ),
    "maximum of two": Case(simple(lambda x: torch.max(x, -x).min(2 * x)), IMAGE, {"a", "b"}),
    "soft-max over positions": Case(
        mlp(lambda x: x.softmax(1) * x.cumsum(1) * x.cumprod(1) * x.sort(1).values), TOKENS, {"a"}),
    "logsumexp over positions": Case(mlp(lambda x: x * x.logsumexp(1, keepdim=True)), TOKENS, {"a"}),
    "best of positions": Case(mlp(lambda x: x.topk(2, 1).values), TOKENS, {"a"}),
    # the weights that are left are divided by a norm of fewer: as if the others were zero
    "weight norm": Case(
        _weighted(parametrizations.weight_norm(conv(8, 6))), IMAGE, {"a", "b", "c"},
        "divides by a norm", masked=True,
    ),
    "weight norm of old": Case(_weighted(_old_weight_norm(conv(8, 6))), IMAGE, {"a", "b", "c"},
                               "divides by a norm", masked=True),
    "weight norm of old, depthwise": Case(
        Net(lambda n, x: pooled(n, n.c(n.b(n.a(x)))), a=conv(3, 8), b=_old_weight_norm(conv(8, 8, groups=8)),
            c=conv(8, 5), fc=nn.Linear(5, 4)),
        IMAGE, {"a", "c"},
    ),
    "standardised weights": Case(_weighted(StandardisedConv2d(8, 6, 3)), IMAGE, {"a", "b", "c"}, "batch_norm in b"),
    "spectral norm": Case(
        Net(lambda n, x: n.fc(n.b(n.a(x))), a=nn.Linear(12, 8), b=parametrizations.spectral_norm(nn.Linear(8, 6)),
            fc=nn.Linear(6, 4)),
        TOKENS, {"a", "b"}, "sums over weights",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_statistics(name: str) -> None:
    check(CASES[name])


def test_weights_of_unit_columns_change_by_their_rows() -> None:
    columns = parametrizations.weight_norm(nn.Linear(8, 6), dim=1)
    network = Net(lambda n, x: n.fc(n.b(n.a(x))), a=nn.Linear(12, 8), b=columns, fc=nn.Linear(6, 4))
    structure = trace(network, TOKENS)
    assert structure.group_of("a").changes_function is None
    assert "divides by a norm" in str(structure.group_of("b").changes_function)
    oracle.check_saved(network, (TOKENS,))


@pytest.mark.parametrize("old", [False, True])
def test_a_cut_leaves_what_weights_are_made_of_in_step(old: bool) -> None:
    """Sizes are right at once, no step of power iteration is made, modes stay."""
    layer = conv(8, 8, groups=8)
    layer = nn.utils.spectral_norm(layer) if old else parametrizations.spectral_norm(layer)
    network = Net(lambda n, x: pooled(n, n.b(n.a(x))), a=conv(3, 8), b=layer, fc=nn.Linear(8, 4))
    network.b.train()
    structure = trace(network, IMAGE)
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    apply(network, structure, Plan({"a": [1, 6]}))
    for name, buffer in network.named_buffers():
        before = buffers[name]
        assert torch.equal(buffer, before[[1, 6]] if len(before) == 8 else before)
    assert network.b.training
    assert (network.b.groups, network.b.weight.shape) == (2, (2, 1, 3, 3))
    assert network(IMAGE).shape == (3, 4)


def test_a_group_norm_of_each_channel_alone_is_cut_exactly() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(8, 8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    structure = oracle.check_masking(network, (torch.randn(2, 3, 8, 8),))
    assert structure.group_of("0").units == 8
    assert structure.group_of("0").changes_function is None
