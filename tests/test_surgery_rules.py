"""Every rule of the trace: small networks made for it, both oracle properties, and what must not be cut."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from handmade import FEATURES, IMAGE, TOKENS, Case, Net, between, check, conv, pooled, simple
from torch import Tensor, nn

from prunecli.errors import TargetError
from prunecli.surgery import Plan, trace, verify


def _shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def _attention(n: Net, x: Tensor) -> Tensor:
    q, k, v = (getattr(n, name)(x).unflatten(-1, (2, -1)).transpose(1, 2) for name in "qkv")
    weights = (q @ k.transpose(-1, -2)).softmax(-1)
    return n.o((weights @ v).transpose(1, 2).flatten(2))


# name -> network, input, layers whose outputs must be cut
CUT: dict[str, tuple[Net, Tensor, set[str]]] = {
    "plain": (simple(F.relu), IMAGE, {"a", "b"}),
    "inplace": (simple(lambda x: F.relu(x, inplace=True).mul_(2)), IMAGE, {"a", "b"}),
    "pooling": (simple(lambda x: F.adaptive_avg_pool2d(F.max_pool2d(x, 2), 2)), IMAGE, {"a", "b"}),
    "interpolate": (simple(lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear")), IMAGE, {"a", "b"}),
    "reflect": (simple(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")), IMAGE, {"a", "b"}),
    "residual": (
        Net(lambda n, x: pooled(n, F.relu(n.b(y := n.a(x)) + y)), a=conv(3, 8), b=conv(8, 8), fc=nn.Linear(8, 4)),
        IMAGE, {"a", "b"},
    ),
    "batch norm": (
        Net(lambda n, x: pooled(n, n.b(F.relu(n.bn(n.a(x))))), a=conv(3, 8), bn=nn.BatchNorm2d(8), b=conv(8, 6),
            fc=nn.Linear(6, 4)),
        IMAGE, {"a", "b"},
    ),
    "concatenation": (
        Net(lambda n, x: pooled(n, n.c(n.bn(torch.cat([n.a(x), x, n.b(x)], 1)))), a=conv(3, 8), b=conv(3, 6),
            bn=nn.BatchNorm2d(17), c=conv(17, 5), fc=nn.Linear(5, 4)),
        IMAGE, {"a", "b", "c"},
    ),
    "flatten": (
        Net(lambda n, x: n.fc(n.a(x).flatten(1)), a=conv(3, 8), fc=nn.Linear(288, 4)), IMAGE, {"a"},
    ),
    "depthwise": (
        Net(lambda n, x: pooled(n, n.c(n.bn(n.b(n.a(x))))), a=conv(3, 8), b=conv(8, 8, groups=8), bn=nn.BatchNorm2d(8),
            c=conv(8, 6), fc=nn.Linear(6, 4)),
        IMAGE, {"a", "c"},
    ),
    "depthwise multiplier": (
        Net(lambda n, x: pooled(n, n.c(n.b(n.a(x)))), a=conv(3, 8), b=conv(8, 24, groups=8), c=conv(24, 6),
            fc=nn.Linear(6, 4)),
        IMAGE, {"a", "c"},
    ),
    "grouped, whole groups": (
        Net(lambda n, x: pooled(n, n.c(n.b(n.a(x)))), a=conv(3, 16), b=conv(16, 24, groups=8), c=conv(24, 6),
            fc=nn.Linear(6, 4)),
        IMAGE, {"a", "b", "c"},
    ),
    "grouped, same positions": (
        Net(lambda n, x: pooled(n, n.c(n.b(n.a(x)))), a=conv(3, 16), b=conv(16, 12, groups=2), c=conv(12, 6),
            fc=nn.Linear(6, 4)),
        IMAGE, {"a", "b", "c"},
    ),
    "transposed": (
        Net(lambda n, x: pooled(n, n.b(n.a(x))), a=conv(3, 8), b=nn.ConvTranspose2d(8, 6, 2), fc=nn.Linear(6, 4)),
        IMAGE, {"a", "b"},
    ),
    "transposed, whole groups": (
        Net(lambda n, x: pooled(n, n.b(n.a(x))), a=conv(3, 8), b=nn.ConvTranspose2d(8, 16, 2, groups=8),
            fc=nn.Linear(16, 4)),
        IMAGE, {"a"},
    ),
    "transposed, same positions": (
        Net(lambda n, x: pooled(n, n.b(n.a(x))), a=conv(3, 8), b=nn.ConvTranspose2d(8, 12, 2, groups=2),
            fc=nn.Linear(12, 4)),
        IMAGE, {"a", "b"},
    ),
    "squeeze and excite": (
        Net(lambda n, x: pooled(n, (y := n.a(x)) * torch.sigmoid(n.e(F.relu(n.s(y.mean((2, 3), keepdim=True)))))),
            a=conv(3, 8), s=conv(8, 4, 1), e=conv(4, 8, 1), fc=nn.Linear(8, 4)),
        IMAGE, {"a", "s", "e"},
    ),
    "called twice": (
        Net(lambda n, x: pooled(n, n.b(F.relu(n.b(n.a(x))))), a=conv(3, 8), b=conv(8, 8), fc=nn.Linear(8, 4)),
        IMAGE, {"a", "b"},
    ),
    "act(0) is not 0": (simple(lambda x: F.softplus(x) + torch.sigmoid(x) + 1), IMAGE, {"a", "b"}),
    "channel shuffle": (between(_shuffle), IMAGE, {"a", "b"}),
    "flip": (between(lambda x: x.flip(1).flip(2)), IMAGE, {"a", "b"}),
    "roll of positions": (between(lambda x: x.roll((1, 2), (2, 3))), IMAGE, {"a", "b"}),
    "chunk": (
        Net(lambda n, x: pooled(n, torch.mul(*n.a(x).chunk(2, 1))), a=conv(3, 16), fc=nn.Linear(8, 4)), IMAGE, {"a"},
    ),
    "glu": (between(lambda x: F.glu(x, 1), 4), IMAGE, {"a", "b"}),
    "swapped halves": (between(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), IMAGE, {"a", "b"}),
    "pixel shuffle": (
        Net(lambda n, x: pooled(n, n.b(F.pixel_shuffle(n.a(x), 2))), a=conv(3, 32), b=conv(8, 6), fc=nn.Linear(6, 4)),
        IMAGE, {"a", "b"},
    ),
    "pixel unshuffle": (between(lambda x: F.pixel_unshuffle(x, 2), 32), IMAGE, {"a", "b"}),
    "zero-padded channels": (
        Net(lambda n, x: pooled(n, n.b(y := n.a(x)) + F.pad(y, (0, 0, 0, 0, 2, 2))), a=conv(3, 8), b=conv(8, 12),
            fc=nn.Linear(12, 4)),
        IMAGE, {"a", "b"},
    ),
    "mlp": (
        Net(lambda n, x: n.fc(F.gelu(n.b(F.relu(n.a(x))))), a=nn.Linear(12, 8), b=nn.Linear(8, 6), fc=nn.Linear(6, 4)),
        FEATURES, {"a", "b"},
    ),
    "tokens": (
        Net(lambda n, x: n.fc(F.gelu(n.a(x)).transpose(1, 2).mean(-1)), a=nn.Linear(12, 8), fc=nn.Linear(8, 4)),
        TOKENS, {"a"},
    ),
    "token mixing": (
        Net(lambda n, x: n.fc(n.a(x) + n.m2(F.gelu(n.m1(n.a(x).mT))).mT), a=nn.Linear(12, 8), m1=nn.Linear(5, 9),
            m2=nn.Linear(9, 5), fc=nn.Linear(8, 4)),
        TOKENS, {"a", "m1"},
    ),
    "attention": (
        Net(_attention, q=nn.Linear(12, 8), k=nn.Linear(12, 8), v=nn.Linear(12, 12), o=nn.Linear(12, 4)),
        TOKENS, {"q", "k", "v"},
    ),
    "unflattened": (
        Net(lambda n, x: pooled(n, n.b(n.a(x).unflatten(1, (-1, 3, 3)))),
            a=nn.Linear(12, 72), b=conv(8, 6), fc=nn.Linear(6, 4)),
        FEATURES, {"a", "b"},
    ),
    "1-D and 3-D": (
        Net(lambda n, x: n.fc(n.b(n.a(x)[:, :, None, None]).flatten(2).mean(2)), a=nn.Conv1d(5, 8, 3),
            b=nn.Conv3d(8, 6, 1), fc=nn.Linear(6, 4)),
        TOKENS, {"a", "b"},
    ),
    "instance norm": (
        Net(lambda n, x: pooled(n, n.b(n.i(n.a(x)))), a=conv(3, 8), i=nn.InstanceNorm2d(8, affine=True), b=conv(8, 6),
            fc=nn.Linear(6, 4)),
        IMAGE, {"a", "b"},
    ),
    "einsum": (
        Net(lambda n, x: n.fc(torch.einsum("ntc,dc->ntd", n.a(x), n.b.weight)), a=nn.Linear(12, 8), b=nn.Linear(8, 6),
            fc=nn.Linear(6, 4)),
        TOKENS, {"a", "b"},
    ),
}  # fmt: skip

NOT_DEAD = {"act(0) is not 0", "token mixing"}  # a unit of zero weights still contributes there


@pytest.mark.parametrize("name", CUT)
def test_channels_are_cut(name: str) -> None:
    network, inputs, layers = CUT[name]
    check(Case(network, inputs, layers, dead=name not in NOT_DEAD))


class Place(nn.Module):
    """Writes its input into zeros."""

    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros(x.shape[0], 8, *x.shape[2:], dtype=x.dtype, device=x.device)
        zeros[:, :8] = x
        return zeros


# name -> network, input, layers that stay, part of the reason
FROZEN: dict[str, tuple[Net, Tensor, set[str], str]] = {
    "own output": (Net(lambda n, x: n.a(x), a=conv(3, 8)), IMAGE, {"a"}, "outputs of the network"),
    "added to the input": (
        Net(lambda n, x: pooled(n, n.b(n.a(x) + x)), a=conv(3, 3), b=conv(3, 8), fc=nn.Linear(8, 4)),
        IMAGE, {"a"}, "add",
    ),
    "sizes in a view": (
        Net(lambda n, x: n.fc(n.a(x).view(-1, 288)), a=conv(3, 8), fc=nn.Linear(288, 4)), IMAGE, {"a"}, "view",
    ),
    "sizes in a split": (
        Net(lambda n, x: pooled(n, torch.mul(*n.a(x).split(4, 1))), a=conv(3, 8), fc=nn.Linear(4, 4)), IMAGE, {"a"}, "",
    ),
    "unequal split": (
        Net(lambda n, x: n.fc(n.a(x).split([3, 5], 1)[0].mean((2, 3))), a=conv(3, 8), fc=nn.Linear(3, 4)),
        IMAGE, {"a"}, "split_with_sizes",
    ),
    "slice": (between(lambda x: x[:, 2:6], 4), IMAGE, {"a"}, "slice"),
    "select": (between(lambda x: x[:, 3][:, None], 1), IMAGE, {"a"}, "select"),
    "roll": (between(lambda x: x.roll(3, 1)), IMAGE, {"a"}, "roll"),
    "soft-max": (simple(lambda x: x.softmax(1)), IMAGE, {"a"}, "softmax"),
    "maximum of channels": (between(lambda x: x.amax(1, keepdim=True), 1), IMAGE, {"a"}, "amax"),
    "no rule": (simple(lambda x: x.renorm(2, 1, 1)), IMAGE, {"a"}, "renorm"),
    "full constant": (simple(lambda x: x + torch.arange(8, device=x.device)[:, None, None]), IMAGE, {"a"}, "add"),
    "written into zeros": (
        Net(lambda n, x: pooled(n, n.b(n.p(n.a(x)))), a=conv(3, 8), p=Place(), b=conv(8, 6), fc=nn.Linear(6, 4)),
        IMAGE, {"a"}, "copy",
    ),
    "cropped channels": (between(lambda x: F.pad(x, (0, 0, 0, 0, -2, 0)), 6), IMAGE, {"a"}, "pad"),
    "head width in the code": (
        Net(lambda n, x: n.o((n.q(x).view(2, 5, -1, 4).transpose(1, 2) @ n.k(x).view(2, 5, -1, 4).permute(0, 2, 3, 1))
                             .softmax(-1).mean(1)),
            q=nn.Linear(12, 8), k=nn.Linear(12, 8), o=nn.Linear(5, 4)),
        TOKENS, {"q", "k"}, "view",
    ),
    "mixed with positions": (
        between(lambda x: x.reshape(x.shape[0], 4, 12, 6), 4), IMAGE, {"a"}, "reshape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FROZEN)
def test_what_cannot_be_cut_is_named(name: str) -> None:
    network, inputs, layers, reason = FROZEN[name]
    structure = trace(network, inputs)
    for layer in layers:
        assert not structure.group_of(layer).prunable
        assert reason in structure.frozen[layer]
    if any(group.prunable for group in structure.groups):
        oracle.check_masking(network, (inputs,))


def test_a_network_that_decides_by_its_data() -> None:
    network = Net(
        lambda n, x: pooled(n, n.b(F.relu(n.a(x)) if x.sum() > 0 else n.a(x))), a=conv(3, 8), b=conv(8, 6),
        fc=nn.Linear(6, 4),
    )  # fmt: skip
    oracle.check_masking(network, (IMAGE,))


def test_layers_never_called_and_heads_of_train_mode() -> None:
    def run(n: Net, x: Tensor) -> Any:
        y = n.a(x)
        return (pooled(n, y), n.aux(y).mean((2, 3))) if n.training else pooled(n, y)

    network = Net(run, a=conv(3, 8), aux=conv(8, 5), unused=conv(3, 3), fc=nn.Linear(8, 4)).eval()
    structure = trace(network, IMAGE)
    assert {*structure.frozen} == {"fc", "aux", "unused"}
    assert "outputs of the network" in structure.frozen["aux"]
    assert "never called" in structure.frozen["unused"]
    assert ("aux.weight", 1) in {(m.tensor, m.axis) for m in structure.group_of("a").members}
    assert not network.training
    oracle.check_masking(network, (IMAGE,))


def test_a_plan_whose_widths_meet_by_chance_in_the_code_is_refused() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        z = n.b(y)
        return pooled(n, z + y if z.shape == y.shape else z)

    network = Net(run, a=conv(3, 8), b=conv(8, 12), fc=nn.Linear(12, 4))
    structure = trace(network, IMAGE)
    for kept in ({"b": range(6)}, {"b": [3]}, {"a": [1], "b": [3, 4]}, {"a": range(6), "b": range(8)}):
        plan = Plan({key: list(units) for key, units in kept.items()})
        verify(network, structure, plan, IMAGE)
        oracle.check_masking(network, (IMAGE,), plan)
    for kept in ({"b": range(8)}, {"a": range(6), "b": range(6)}):
        plan = Plan({key: list(units) for key, units in kept.items()})
        with pytest.raises(TargetError, match="add in the network itself does not follow"):
            verify(network, structure, plan, IMAGE)


def test_sizes_worked_out_from_shapes_tie_what_they_count() -> None:
    """The code works out the width of a head from its input's width, so that both are cut alike."""

    def run(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        return n.o(n.q(y).reshape(*y.shape[:2], 2, y.shape[2] // 2).mean(1).flatten(1))

    network = Net(run, a=nn.Linear(12, 8), q=nn.Linear(8, 8), o=nn.Linear(8, 4))
    structure = trace(network, TOKENS)
    group = structure.group_of("a")
    assert (group.layers, group.units) == (["a", "q"], 4)
    for kept in ([0], [1, 3], [0, 1, 2]):
        verify(network, structure, Plan({"a": kept}), TOKENS)
        oracle.check_masking(network, (TOKENS,), Plan({"a": kept}))


def test_values_that_the_code_makes_are_not_those_of_the_network() -> None:
    """Both are asked for; the network's decides that channels are mirrored, which a cut must follow."""

    def run(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        assert torch.tensor(3.0).item() == 3
        y = y if y.new_ones(()).item() == 3 else y.flip(1)
        assert torch.linspace(0, 2, 3)[1].item() == 1
        return pooled(n, n.b(y))

    check(Case(Net(run, a=conv(3, 8), b=conv(8, 6), fc=nn.Linear(6, 4)), IMAGE, {"a", "b"}))
