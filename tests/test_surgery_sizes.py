"""Sizes that a network keeps in attributes or reads from shapes: they follow a cut, and the oracle holds."""

from __future__ import annotations

import copy
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunecli.surgery import Plan, Structure, apply, trace, verify

TOKENS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Layers and integers, and a function of them and the input."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._run = run

    def forward(self, *inputs: Tensor) -> Any:
        return self._run(self, *inputs)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)).softmax(-1) @ v


def fused(n: Net, x: Tensor) -> Tensor:
    batch, tokens, _ = x.shape
    q, k, v = n.qkv(x).reshape(batch, tokens, 3, n.num_heads, n.head_dim).permute(2, 0, 3, 1, 4)
    return n.proj(attend(q, k, v).transpose(1, 2).reshape(batch, tokens, n.num_heads * n.head_dim))


def separate(n: Net, x: Tensor) -> Tensor:
    q, k, v = (layer(x).view(*x.shape[:2], n.heads, -1).transpose(1, 2) for layer in (n.q, n.k, n.v))
    return n.proj(attend(q, k, v).transpose(1, 2).reshape(*x.shape[:2], n.inner))


def from_shape(n: Net, x: Tensor) -> Tensor:
    y = n.embed(x)
    batch, tokens, width = y.shape
    q, k, v = n.qkv(y).reshape(batch, tokens, 3, n.num_heads, width // n.num_heads).permute(2, 0, 3, 1, 4)
    return n.proj(y + attend(q, k, v).transpose(1, 2).reshape(batch, tokens, width))


def ATTENTION() -> dict[str, Net]:  # noqa: N802
    return {
        "fused": Net(fused, qkv=nn.Linear(6, 24), proj=nn.Linear(8, 4), num_heads=2, head_dim=4),
        "separate": Net(
            separate, q=nn.Linear(6, 8), k=nn.Linear(6, 8), v=nn.Linear(6, 8), proj=nn.Linear(8, 4), heads=2, inner=8
        ),
        "from shape": Net(from_shape, embed=nn.Linear(6, 8), qkv=nn.Linear(8, 24), proj=nn.Linear(8, 4), num_heads=2),
    }


def attributes(network: nn.Module, structure: Structure, plan: Plan) -> dict[str, Any]:
    """Every attribute that a cut sets, by layer and name."""
    record = apply(network, structure, plan)
    return {
        f"{layer}.{name}".lstrip("."): v for layer, values in record.attributes.items() for name, v in values.items()
    }


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("name", ATTENTION())
def test_heads_grow_narrower_or_go(name: str, heads: bool) -> None:
    """Zero queries, keys and values are no queries, keys and values, while their scale stays what it was."""
    network = oracle.randomise(ATTENTION()[name])
    structure = trace(network, TOKENS.double(), heads=heads)
    assert {g.units for g in structure.groups if g.prunable} == {2 if heads else 4}
    plan = oracle.half(structure)
    oracle.zero(network, structure, plan, ("out", "other"))
    cut = copy.deepcopy(network)
    apply(cut, structure, plan)
    oracle.same(network, cut, (TOKENS.double(),))
    assert cut.proj.in_features == 4
    assert getattr(cut, "num_heads", getattr(cut, "heads", 0)) == (1 if heads else 2)


def test_attributes_say_what_is_left() -> None:
    network = ATTENTION()["fused"]
    structure = trace(network, TOKENS)
    (group,) = (g for g in structure.groups if g.prunable)
    assert group.units == 4  # positions in a head, of queries, keys and values
    plan = Plan({group.key: [0, 2, 3]})
    verify(network, structure, plan, TOKENS)
    assert attributes(network, structure, plan) == {"head_dim": 3, "qkv.out_features": 18, "proj.in_features": 6}
    assert network.head_dim == 3
    assert network(TOKENS).shape == (2, 5, 4)


def test_the_attention_of_pytorch_follows() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    network = Net(lambda n, x: n.fc(n.attention(*[n.embed(x)] * 3)[0]), attention=layer,
                  embed=nn.Linear(6, 8), fc=nn.Linear(8, 4))  # fmt: skip
    structure = trace(network, TOKENS)
    assert structure.group_of("embed").layers == ["embed", "attention"]
    changed = attributes(network, structure, oracle.half(structure))
    assert changed["attention.embed_dim"] == 4
    whole = trace(network, TOKENS, heads=True)
    assert attributes(network, whole, Plan({"embed": [1]}))["attention.num_heads"] == 1
    assert network.eval()(TOKENS).shape == network.train()(TOKENS).shape == (2, 5, 4)


# name -> function, attributes, sizes after half of "a" has gone
COUNTED: dict[str, tuple[Callable[..., Tensor], dict[str, Any], dict[str, Any]]] = {
    "a view": (lambda n, x: n.a(x).view(len(x), n.width, 36).mean(2), {"width": 8}, {"width": 4}),
    "unequal parts": (
        lambda n, x: torch.cat([y.mean((2, 3)) for y in reversed(n.a(x).split(n.parts, 1))], 1),
        {"parts": [2, 6]}, {"parts": [1, 3]},
    ),
    "the first channels": (
        lambda n, x: n.b(n.a(x).mean((2, 3))[:, : n.some]), {"some": 3, "b": nn.Linear(3, 8)}, {"some": 2}
    ),
    "an assertion": (lambda n, x: _expect(n.a(x).mean((2, 3)), n.width), {"width": 8}, {"width": 4}),
    "new zeros": (
        lambda n, x: torch.cat([n.a(x).mean((2, 3)) + x.new_zeros(len(x), n.width)]), {"width": 8}, {"width": 4}
    ),
    "depthwise by hand": (
        lambda n, x: F.conv2d(n.a(x), n.weight, groups=n.width).mean((2, 3)),
        {"width": 8, "weight": nn.Parameter(torch.randn(8, 1, 3, 3))}, {"width": 4},
    ),
    "a layer norm by hand": (
        lambda n, x: F.layer_norm(n.a(x).mean((2, 3)), (n.width,)), {"width": 8}, {"width": 4}
    ),
}  # fmt: skip


def _expect(x: Tensor, width: int) -> Tensor:
    assert x.shape[1] == width
    return x


@pytest.mark.parametrize("name", COUNTED)
def test_numbers_in_attributes_follow(name: str) -> None:
    run, values, after = COUNTED[name]
    network = Net(lambda n, x: n.fc(run(n, x)), a=nn.Conv2d(3, 8, 3, padding=1), fc=nn.Linear(8, 4), **values)
    structure = trace(network, IMAGE)
    assert structure.group_of("a").prunable, structure.frozen
    if structure.group_of("a").changes_function is None:
        oracle.check_dead(network, (IMAGE,), Plan({"a": [0, 2, 3, 7]}))
        oracle.check_masking(network, (IMAGE,), Plan({"a": [0, 2, 3, 7]}))
    changed = attributes(network, structure, Plan({"a": [0, 2, 3, 7]}))
    assert {name: changed[name] for name in after} == after


def test_a_number_in_the_code_is_not_a_size() -> None:
    """`== 8` and `view(-1, 8)` are true of the whole network only."""
    for run in (lambda n, x: x if x.shape[1] != 8 else x + 1, lambda n, x: x.view(-1, 8)):
        network = Net(lambda n, x, run=run: n.fc(run(n, n.a(x).mean((2, 3)))), a=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 4))
        assert "a" in trace(network, IMAGE).frozen


def test_computing_with_a_number_of_channels_changes_the_function() -> None:
    network = Net(
        lambda n, x: n.fc((y := n.a(x).mean((2, 3))) * y.shape[1] ** -0.5), a=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 4)
    )
    assert "power" in (trace(network, IMAGE).group_of("a").changes_function or "")


@pytest.mark.parametrize(
    "run",
    [lambda y: y / y.shape[1], lambda y: y * torch.tensor(y.shape[1]), lambda y: y - y.shape[1],
     lambda y: 1 / (y.square() + y.shape[1]), lambda y: y.clamp(max=y.shape[1]), lambda y: y / (3 * y.shape[1]),
     lambda y: y * (y.shape[1] * 0.5), lambda y: y + y.sum() / y.numel()],
    ids=["divided", "a tensor", "subtracted", "added", "clamped", "three times", "half", "all elements"],
)  # fmt: skip
def test_tensors_that_meet_a_number_of_channels_change_the_function(run: Callable[[Tensor], Tensor]) -> None:
    network = Net(lambda n, x: n.fc(run(n.a(x).mean((2, 3)))), a=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 4))
    assert "the number of channels" in (trace(network, IMAGE).group_of("a").changes_function or "")


@pytest.mark.parametrize(
    "number",
    [lambda n: -n, abs, lambda n: 2**n, lambda n: divmod(n, 3)[0], lambda n: n << 1],
    ids=["negative", "absolute", "a power", "a quotient", "shifted"],
)
def test_numbers_computed_of_a_number_of_channels_change_the_function(number: Callable[[int], int]) -> None:
    network = Net(lambda n, x: n.fc((y := n.a(x)).mean((2, 3)) * number(y.shape[1])), a=nn.Conv2d(3, 8, 3),
                  fc=nn.Linear(8, 4))  # fmt: skip
    assert "the number of channels" in (trace(network, IMAGE).group_of("a").changes_function or "")


def test_halves_of_two_do_not_follow_a_number_in_the_code() -> None:
    """The half that is left has no neighbour to be told from, yet it takes the other's shape."""

    def halves(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        return n.b(y.unflatten(1, (2, -1)).flip(1).flatten(1)) + n.c(y.unflatten(1, (-1, 4)).mean(2))

    network = Net(halves, a=nn.Linear(6, 8), b=nn.Linear(8, 3), c=nn.Linear(2, 3))
    assert "written in the code" in trace(network, torch.ones(2, 6)).frozen["a"]


def test_a_layer_of_a_single_channel_is_named() -> None:
    network = Net(lambda n, x: x * n.gate(n.a(x)), a=nn.Conv2d(3, 8, 1), gate=nn.Conv2d(8, 1, 1))
    structure = trace(network, IMAGE)
    assert structure.frozen["gate"] == "its output is a single channel"
    assert structure.group_of("a").units == 8


def test_shuffled_channels_need_no_ties_to_their_own_number() -> None:
    def shuffle(n: Net, x: Tensor) -> Tensor:
        batch, channels, *image = (y := n.a(x)).shape
        return n.b(y.view(batch, 2, channels // 2, *image).transpose(1, 2).reshape(batch, channels, *image))

    network = Net(lambda n, x: n.fc(shuffle(n, x).mean((2, 3))), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 5, 3),
                  fc=nn.Linear(5, 4))  # fmt: skip
    assert oracle.check_masking(network, (IMAGE,)).group_of("a").units == 4


def test_a_weight_may_be_seen_as_one_row() -> None:
    network = Net(
        lambda n, x: n.fc(n.weight.view(n.weight.numel()).view(8, 5) @ x.mT),
        weight=nn.Parameter(torch.randn(8, 5)), fc=nn.Linear(2, 4),
    )  # fmt: skip
    assert not trace(network, TOKENS[0, :2, :5]).groups[0].prunable


PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    "up to the last": lambda y: y[:, :-1],
    "the last": lambda y: y[:, -1:],
    "the last by number": lambda y: y[:, y.shape[1] - 1 :],
    "a length less one": lambda y: y.narrow(1, 0, y.shape[1] - 1),
    "three quarters": lambda y: y[:, : 3 * y.shape[1] // 4],
    "every other": lambda y: y[:, ::2],
    "shifted by one": lambda y: torch.cat([y[:, -1:], y[:, :-1]], 1),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_counted_from_the_end_or_computed_are_no_sizes(name: str) -> None:
    """After a cut other channels are there, though labels on both sides may look alike."""
    a, width = nn.Conv2d(3, 8, 3), PLACES[name](torch.zeros(1, 8)).shape[1]
    network = Net(lambda n, x: n.b(PLACES[name](n.a(x))), a=a, b=nn.Conv2d(width, 4, 1))
    assert "names places along the channels" in trace(network, IMAGE).frozen["a"]


def test_a_slice_up_to_a_size_follows_whichever_way_it_is_written() -> None:
    for half in (lambda y, n: y[:, : n.width], lambda y, n: y.narrow(-3, 0, n.width)):
        network = Net(
            lambda n, x, half=half: n.fc(half(torch.cat([n.a(x), n.b(x)], 1), n).mean((2, 3))),
            width=8, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 4),
        )  # fmt: skip
        structure = oracle.check_masking(network, (IMAGE,))
        assert structure.group_of("a").prunable or structure.group_of("b").prunable


@pytest.mark.parametrize("width", [12, 24])
def test_as_many_blocks_as_a_block_is_long(width: int) -> None:
    """In the cut network units in several blocks look like blocks of one unit: the whole network's labels decide."""

    def quarter(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        size = y.shape[1] // 4
        return n.b(torch.cat([y[:, :size] * 2, y[:, size:]], 1))

    network = Net(quarter, a=nn.Conv2d(3, width, 3), b=nn.Conv2d(width, 4, 1))
    structure = oracle.check_masking(network, (IMAGE,))
    assert structure.group_of("a").units == width // 4
    verify(network, structure, Plan({"a": [*range(3)]}), IMAGE)


def test_named_tuples_of_integers_stay_what_they_are() -> None:
    config = namedtuple("Config", "width stride")
    network = Net(
        lambda n, x: n.fc(n.a(x).view(x.shape[0], n.config.width, -1).mean(2)),
        config=config(8, 2), a=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 5),
    )  # fmt: skip
    assert "written in the code" in trace(network, IMAGE).frozen["a"]
    assert network.config == config(8, 2)


def test_the_number_of_groups_may_come_in_any_order() -> None:
    for options in ({"padding": 1, "groups": 0}, {"groups": 0, "padding": 1}):
        network = Net(
            lambda n, x, o=options: n.fc(F.conv2d(n.a(x), n.w, **(o | {"groups": n.width})).mean((2, 3))),
            width=8, w=nn.Parameter(torch.randn(8, 1, 3, 3)), a=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 5),
        )  # fmt: skip
        assert oracle.check_masking(network, (IMAGE,)).group_of("a").units == 8
