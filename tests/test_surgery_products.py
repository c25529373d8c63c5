"""Products: attention, einsum, bilinear layers, factors of weights; and recurrent layers, which are left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from handmade import FEATURES, TOKENS, Case, Net, check, mlp, parameter
from torch import Tensor, nn

from prunecli.surgery import Plan, apply, trace, verify


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attention(
    attend: Callable[..., Tensor], heads: int = 2, groups: int = 2, widths: tuple[int, int, int] = (8, 8, 12)
) -> Net:
    """Separate queries, keys and values of 8, 8 and 12 channels in `heads` heads, `groups` of keys and values."""

    def run(n: Net, x: Tensor) -> Tensor:
        y = attend(_heads(n.q(x), heads), _heads(n.k(x), groups), _heads(n.v(x), groups))
        return n.o(y.transpose(1, 2).flatten(2))

    parts: dict[str, Any] = {name: nn.Linear(12, width) for name, width in zip("qkv", widths, strict=True)}
    return Net(run, **parts, o=nn.Linear(widths[2] // groups * heads, 4))


def _fused(scale: float | None, **options: Any) -> Callable[..., Tensor]:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=scale, **options)


def _cosine_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Swin v2: the angles between queries and keys, whose lengths are of what every head has left."""
    return (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * 3).softmax(-1) @ v


def _linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Katharopoulos et al.: φ(q) (φ(k)ᵀ v), with φ(x) = relu(x), over the sum of its weights."""
    q, k = F.relu(q), F.relu(k)
    sums = q @ k.sum(2, keepdim=True).mT + 1e-3
    return q @ (k.mT @ v) / sums


CASES = {
    "attention": Case(_attention(lambda q, k, v: (q @ k.mT / 2).softmax(-1) @ v), TOKENS, {"q", "k", "v"}),
    "attention, scale named": Case(_attention(_fused(0.5)), TOKENS, {"q", "k", "v"}),
    "attention, scale of the width": Case(
        _attention(_fused(None)), TOKENS, {"q", "k", "v"}, "divides by the root of a head's width"
    ),
    "attention, of angles": Case(_attention(_cosine_attention), TOKENS, {"q", "k", "v"}),
    "attention, causal": Case(_attention(_fused(1.0, is_causal=True)), TOKENS, {"q", "k", "v"}),
    "attention, masked": Case(
        _attention(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, q.new_ones(2, 5, 5).tril() > 0, scale=0.5)),
        TOKENS, {"q", "k", "v"},
    ),
    "grouped-query attention": Case(
        _attention(_fused(0.5, enable_gqa=True), 4, 2, (16, 8, 12)), TOKENS, {"q", "k", "v"}
    ),
    "grouped-query attention by hand": Case(
        _attention(
            lambda q, k, v: (q @ k.repeat_interleave(2, 1).mT).softmax(-1) @ v.repeat_interleave(2, 1), 4, 2,
            (16, 8, 12),
        ),
        TOKENS, {"q", "k", "v"},
    ),
    "multi-query attention": Case(
        _attention(lambda q, k, v: (q @ k.mT).softmax(-1) @ v, 4, 1, (16, 4, 3)), TOKENS, {"q", "k", "v"}
    ),
    "linear attention": Case(_attention(_linear_attention), TOKENS, {"q", "k", "v"}),
    "einsum attention": Case(
        _attention(lambda q, k, v: torch.einsum("bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q, k).tanh(), v)),
        TOKENS, {"q", "k", "v"},
    ),
    "attention with a table of places": Case(
        Net(lambda n, x: n.o(F.scaled_dot_product_attention(n.q(x) + n.places, n.k(x) + n.places, n.v(x), scale=1.0)),
            q=nn.Linear(12, 8), k=nn.Linear(12, 8), v=nn.Linear(12, 6), o=nn.Linear(6, 4), places=parameter(5, 8)),
        TOKENS, {"q", "k", "v"},
    ),
    "class token and layer scale": Case(
        Net(lambda n, x: n.fc((y := torch.cat([n.token.expand(len(x), -1, -1), n.a(x)], 1) + n.places)[:, 0]
                              + n.scale * n.c(F.relu(n.b(y)))[:, 0]),
            a=nn.Linear(12, 8), token=parameter(1, 1, 8), places=parameter(1, 6, 8), b=nn.Linear(8, 10),
            c=nn.Linear(10, 8), scale=parameter(8), fc=nn.Linear(8, 4)),
        TOKENS, {"a", "b", "c"}, dead=True,
    ),
    "einsum with weights": Case(
        Net(lambda n, x: torch.einsum("btd,dhw,hwo->bto", n.a(x), n.up, n.down), a=nn.Linear(12, 8),
            up=parameter(8, 3, 4), down=parameter(3, 4, 5)),
        TOKENS, {"a", ""},
    ),
    "bare weights": Case(
        Net(lambda n, x: F.relu(x @ n.first + n.bias) @ n.second, first=parameter(12, 8), bias=parameter(8),
            second=parameter(8, 4)),
        TOKENS, {""},
    ),
    "factors of a weight": Case(
        Net(lambda n, x: n.fc(F.linear(n.a(x), n.left @ n.right)), a=nn.Linear(12, 8), left=parameter(7, 3),
            right=parameter(3, 8), fc=nn.Linear(7, 4)),
        TOKENS, {"a", ""},
    ),
    "bilinear": Case(
        Net(lambda n, x: n.fc(n.c(n.a(x), n.b(x))), a=nn.Linear(12, 8), b=nn.Linear(12, 6), c=nn.Bilinear(8, 6, 5),
            fc=nn.Linear(5, 4)),
        TOKENS, {"a", "b", "c"},
    ),
    "one vector": Case(
        Net(lambda n, x: n.fc(n.b(n.a(x[0]).relu())) + (n.a(x) @ n.direction).mean(), a=nn.Linear(12, 8),
            b=nn.Linear(8, 6), fc=nn.Linear(6, 4), direction=parameter(8)),
        FEATURES, {"a", "b"},
    ),
    "dot": Case(
        Net(lambda n, x: n.fc(x) * torch.dot(n.a(x[0]), n.b(x[1])), a=nn.Linear(12, 8), b=nn.Linear(12, 8),
            fc=nn.Linear(12, 4)),
        FEATURES, {"a", "b"},
    ),
    "batched products": Case(
        Net(lambda n, x: n.fc(torch.baddbmm(n.c(x), n.a(x), n.b(x).mT @ n.d(x))), a=nn.Linear(12, 8),
            b=nn.Linear(12, 8), c=nn.Linear(12, 6), d=nn.Linear(12, 6), fc=nn.Linear(6, 4)),
        TOKENS, {"a", "b", "c", "d"},
    ),
    "hidden units of a mixer": Case(
        Net(lambda n, x: n.fc(n.a(x) + n.m2(F.relu(n.m1(n.a(x).mT))).mT), a=nn.Linear(12, 8), m1=nn.Linear(5, 9),
            m2=nn.Linear(9, 5), fc=nn.Linear(8, 4)),
        TOKENS, {"a", "m1"}, dead=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_products(name: str) -> None:
    check(CASES[name])


def test_attention_in_one_layer_loses_the_same_positions_of_queries_and_keys() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        q, k, v = n.qkv(x).chunk(3, -1)
        return n.o(F.scaled_dot_product_attention(q, k, v, scale=1.0))

    network = Net(run, qkv=nn.Linear(12, 24), o=nn.Linear(8, 4))
    structure = check(Case(network, TOKENS, {"qkv"}, masked=False))
    (rows,) = (m for m in structure.group_of("qkv").members if m.tensor == "qkv.weight")
    assert structure.group_of("qkv").units == 8
    assert rows.unit.tolist() == [*range(8)] * 3


def _counted_heads(attend: Callable[..., Tensor], groups: int) -> Net:
    """Queries in `n.heads` heads of 4, keys and values in `n.groups` of 4 and 6."""

    def run(n: Net, x: Tensor) -> Tensor:
        y = attend(n, _heads(n.q(x), n.heads), _heads(n.k(x), n.groups), _heads(n.v(x), n.groups))
        return n.o(y.transpose(1, 2).flatten(2))

    network = Net(
        run, q=nn.Linear(12, 16), k=nn.Linear(12, 4 * groups), v=nn.Linear(12, 6 * groups), o=nn.Linear(24, 4)
    )
    network.heads, network.groups = 4, groups
    return network


HEADS = {
    "attention": (_counted_heads(lambda n, q, k, v: (q @ k.mT).softmax(-1) @ v, 4), 4),
    "fused": (_counted_heads(lambda n, q, k, v: _fused(0.5)(q, k, v), 4), 4),
    "linear attention": (_counted_heads(lambda n, q, k, v: _linear_attention(q, k, v), 4), 4),
    "of angles": (_counted_heads(lambda n, q, k, v: _cosine_attention(q, k, v), 4), 4),
    "grouped-query": (_counted_heads(lambda n, q, k, v: _fused(0.5, enable_gqa=True)(q, k, v), 2), 2),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_whole_or_narrower(name: str) -> None:
    """Zero values are no head at all; of grouped queries all that read one head of keys and values go with it."""
    network, units = HEADS[name]
    for heads in (False, True):
        structure = trace(network, TOKENS, heads=heads)
        found = {g.units for g in structure.groups if g.prunable}
        assert found == ({units} if heads else {4, 6}), structure.frozen
        dense = oracle.randomise(network)
        plan = oracle.half(structure)
        oracle.zero(dense, structure, plan, ("out", "other"))
        cut = copy.deepcopy(dense)
        apply(cut, structure, plan)
        oracle.same(dense, cut, (TOKENS.double(),))
        assert (cut.heads, cut.groups) == ((2, units // 2) if heads else (4, network.groups))


def test_only_narrower_heads_change_the_scale_of_their_products() -> None:
    network = _counted_heads(lambda n, q, k, v: _fused(None)(q, k, v), 4)
    why = {heads: trace(network, TOKENS, heads=heads).group_of("q").changes_function for heads in (False, True)}
    assert "root of a head's width" in str(why[False])
    assert why[True] is None


@pytest.mark.parametrize("attend", [_fused(0.5), lambda q, k, v: (q @ k.mT).softmax(-1) @ v])
def test_a_single_head_is_no_whole_head_to_cut(attend: Callable[..., Tensor]) -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        return n.o(n.up(attend(n.q(x), n.k(x), n.v(x))).relu())

    parts = {name: nn.Linear(12, 8) for name in "qkv"}
    network = Net(run, **parts, up=nn.Linear(8, 16), o=nn.Linear(16, 4))
    assert {g.key for g in trace(network, TOKENS).groups if g.prunable} == {"q", "v", "up"}
    structure = trace(network, TOKENS, heads=True)
    assert {g.key for g in structure.groups if g.prunable} == {"up"}
    assert {structure.frozen[layer] for layer in "qkv"} == {"all of its channels must go together"}


def test_one_head_of_several_may_be_left_where_it_needs_no_copy() -> None:
    """PyTorch leaves out what `contiguous` and `reshape` need not copy: the operations of a cut network are fewer."""

    def attend(n: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = n.table[:25].view(5, 5, -1).permute(2, 0, 1).contiguous()
        y = (q @ k.mT + bias).softmax(-1) @ v
        return y.transpose(1, 2).flatten(2).view(10, -1).view(2, 5, n.heads, 6).transpose(1, 2)

    network = _counted_heads(attend, 4)
    network.table = nn.Parameter(torch.randn(25, 4))
    structure = trace(network, TOKENS, heads=True)
    assert structure.group_of("q").units == 4
    for kept in ([2], [0, 3]):
        plan = Plan({structure.group_of("q").key: kept})
        verify(network, structure, plan, TOKENS)
        dense = oracle.randomise(network)
        oracle.zero(dense, structure, plan, ("out", "other"))
        cut = copy.deepcopy(dense)
        apply(cut, structure, plan)
        oracle.same(dense, cut, (TOKENS.double(),))
        assert cut.heads == len(kept)


def test_the_rank_of_a_product_of_weights_is_cut_apart_from_its_outputs() -> None:
    structure = trace(CASES["factors of a weight"].network, TOKENS)
    assert {group.key: group.units for group in structure.groups if group.prunable} == {"a": 8, "": 7}


RECURRENT = {
    "lstm": nn.LSTM(8, 7, batch_first=True),
    "two-way lstm": nn.LSTM(8, 7, 2, bidirectional=True, batch_first=True),
    "projected lstm": nn.LSTM(8, 9, proj_size=7, batch_first=True),
    "gru": nn.GRU(8, 7, batch_first=True),
    "rnn": nn.RNN(8, 7, batch_first=True),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_are_named_and_left_alone(name: str) -> None:
    rnn = RECURRENT[name]
    width = 14 if rnn.bidirectional else 7
    network = Net(
        lambda n, x: n.fc(F.relu(n.c(y := n.rnn(n.b(F.relu(n.a(x))))[0]) + n.d(x) + y)),
        a=nn.Linear(12, 10), b=nn.Linear(10, 8), rnn=rnn, c=nn.Linear(width, width), d=nn.Linear(12, width),
        fc=nn.Linear(width, 4),
    )  # fmt: skip
    structure = check(Case(network, TOKENS, {"a"}))
    for layer in ("b", "rnn", "c", "d"):
        assert "in rnn: recurrent layers are left alone" in structure.frozen[layer]


@pytest.mark.parametrize("cell", [nn.LSTMCell(8, 8), nn.GRUCell(8, 8), nn.RNNCell(8, 8)], ids=["lstm", "gru", "rnn"])
def test_recurrent_cells_too(cell: nn.Module) -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        state = None
        for token in n.b(F.relu(n.a(x))).unbind(1):
            state = n.cell(token, state)
        return n.fc(F.relu(n.c(state[0] if isinstance(state, tuple) else state)))

    parts = {"a": nn.Linear(12, 10), "b": nn.Linear(10, 8), "c": nn.Linear(8, 6), "fc": nn.Linear(6, 4)}
    structure = check(Case(Net(run, cell=cell, **parts), TOKENS, {"a", "c"}))
    for layer in ("b", "cell"):
        assert "recurrent layers are left alone" in structure.frozen[layer]


def test_a_recurrence_by_hand_is_cut() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        state = n.a(x[:, 0])
        for token in x[:, 1:].unbind(1):
            state = torch.relu(n.a(token) + n.b(state))
        return n.fc(state)

    check(Case(Net(run, a=nn.Linear(12, 8), b=nn.Linear(8, 8), fc=nn.Linear(8, 4)), TOKENS, {"a", "b"}))


def test_a_function_of_tokens_alone() -> None:
    check(Case(mlp(lambda x: x @ x.mT @ x), TOKENS, {"a"}, masked=False))
