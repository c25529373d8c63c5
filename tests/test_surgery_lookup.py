"""Looking up and writing by index, masks, embeddings: indices along other axes than the channels' hand these on."""

from __future__ import annotations

import oracle
import pytest
import torch
from handmade import FEATURES, IMAGE, TOKENS, Case, Net, between, check, conv, mlp, parameter, simple
from torch import Tensor, nn

from prunecli.surgery import Plan, trace

PLACES = torch.tensor([4, 0, 2, 2])
WORDS = torch.tensor([[1, 5, 2, 2, 0], [3, 3, 4, 6, 1]])


def _biased_attention(n: Net, x: Tensor) -> Tensor:
    """A table of biases by distance, one column a head, as in Swin."""
    q, k, v = (getattr(n, name)(x).unflatten(-1, (2, -1)).transpose(1, 2) for name in "qkv")
    bias = n.table[n.distances.view(-1)].view(5, 5, -1).permute(2, 0, 1).contiguous()
    weights = (q @ k.transpose(-1, -2) + bias.unsqueeze(0)).softmax(-1)
    return n.o((weights @ v).transpose(1, 2).flatten(2))


def _words(n: Net, x: Tensor) -> Tensor:
    x = n.words(x) + n.places(n.numbers[:, : x.shape[1]])
    return n.fc(torch.relu(n.a(x)))


def _put(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :, [1, 3]] = x[:, :, [0, 2]]
    y[:, :, 4:] = x[:, :, :2]
    return y


DISTANCES = torch.arange(5)[:, None] - torch.arange(5) + 4

CASES = {
    "relative position bias": Case(
        Net(_biased_attention, **{name: nn.Linear(12, 8) for name in "qkv"}, o=nn.Linear(8, 4), table=parameter(9, 2),
            distances=DISTANCES),
        TOKENS, {"q", "k", "v"},
    ),
    "index": Case(simple(lambda x: x[:, :, [0, 4, 4]][..., torch.tensor([1, 2])]), IMAGE, {"a", "b"}),
    "index of two axes": Case(
        Net(lambda n, x: n.fc(n.a(x)[:, :, [0, 4], [1, 2]].mean(-1)), a=conv(3, 8), fc=nn.Linear(8, 4)), IMAGE, {"a"},
    ),
    "index of two axes apart": Case(
        Net(lambda n, x: n.fc(n.a(x)[[0, 1, 1], :, :, [1, 2, 4]].mean(-1)), a=conv(3, 8), fc=nn.Linear(8, 4)),
        IMAGE, {"a"},
    ),
    "index by a buffer": Case(
        Net(lambda n, x: n.fc(n.a(x)[:, n.places]), a=nn.Linear(12, 8), places=PLACES, fc=nn.Linear(8, 4)),
        TOKENS, {"a"},
    ),
    "index select": Case(mlp(lambda x: x.index_select(1, PLACES.to(x.device))), TOKENS, {"a"}),
    "channels at places that the network keeps": Case(
        Net(lambda n, x: n.fc(torch.relu(n.norm(n.a(x).index_select(1, n.places)))), a=nn.Linear(12, 8), places=PLACES,
            norm=nn.BatchNorm1d(4), fc=nn.Linear(4, 3)),
        FEATURES, {""},  # the network's own tensor
    ),
    "gather": Case(
        mlp(lambda x: x.gather(1, PLACES[:, None].to(x.device).expand(2, 4, x.shape[2]))), TOKENS, {"a"},
    ),
    "take along": Case(mlp(lambda x: x.take_along_dim(PLACES[None, :, None].to(x.device), 1)), TOKENS, {"a"}),
    "scatter": Case(
        mlp(lambda x: torch.zeros_like(x).scatter_add(1, PLACES[:, None].to(x.device).expand_as(x[:, :4]), x)),
        TOKENS, {"a"},
    ),
    "index add": Case(mlp(lambda x: x.index_add(1, PLACES.to(x.device), x[:, 1:])), TOKENS, {"a"}),
    "index put": Case(simple(_put), IMAGE, {"a", "b"}),
    "masked fill": Case(simple(lambda x: x.masked_fill(x > 0.2, 0.0).masked_fill_(x < -0.2, 0.1)), IMAGE, {"a", "b"}),
    "where": Case(simple(lambda x: torch.where(x > 0, x, x.exp())), IMAGE, {"a", "b"}, dead=False),
    "words and places": Case(
        Net(_words, words=nn.Embedding(7, 10), places=nn.Embedding(6, 10), numbers=torch.arange(6)[None],
            a=nn.Linear(10, 8), fc=nn.Linear(8, 4)),
        WORDS, {"words", "places", "a"},
    ),
    "bags of words": Case(
        Net(lambda n, x: n.fc(torch.relu(n.bag(x))), bag=nn.EmbeddingBag(7, 8, mode="sum"), fc=nn.Linear(8, 4)),
        WORDS, {"bag"},
    ),
    "a mask of the batch": Case(
        Net(lambda n, x: n.fc(n.a(x)[x[:, 0] > -9]), a=nn.Linear(12, 8), fc=nn.Linear(8, 4)), FEATURES, {"a"},
    ),
    "a mask of pixels": Case(
        Net(lambda n, x: n.fc(n.a(x)[:, :, x[0, 0] > 0].mean(2)), a=conv(3, 8), fc=nn.Linear(8, 4)), IMAGE, {"a"},
    ),
    "a mask over two axes": Case(
        Net(lambda n, x: n.fc(n.a(x).permute(0, 2, 3, 1)[x[:, 0] > 0]), a=conv(3, 8), fc=nn.Linear(8, 4)), IMAGE, {"a"},
    ),
    "a mask in a buffer": Case(
        Net(lambda n, x: n.fc(n.a(x)[:, n.mask].flatten(1)), a=nn.Linear(12, 8), fc=nn.Linear(24, 4),
            mask=torch.tensor([True, False, True, True, False])),
        TOKENS, {"a"},
    ),
    "places that are not zero": Case(
        Net(lambda n, x: n.fc(n.a(x)[(x[:, 0] < 0).nonzero()[:, 0]]), a=nn.Linear(12, 8), fc=nn.Linear(8, 4)),
        FEATURES, {"a"},
    ),
    "a bare table of words": Case(
        Net(lambda n, x: n.fc(n.table[x]), table=parameter(7, 8), fc=nn.Linear(8, 4)), WORDS, set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_channels_are_handed_on(name: str) -> None:
    check(CASES[name])


# name -> network, input, the layer that stays, part of the reason
FROZEN = {
    "permuted channels": (between(lambda x: x[:, [3, 1, 0, 2, 7, 6, 5, 4]]), "index"),
    "selected channels": (between(lambda x: x[:, torch.tensor([3, 1])], 2), "index"),
    "channels and positions": (between(lambda x: x[:, [3, 1], :, [0, 1]].permute(1, 0, 2)[:, :, None], 2), "index"),
    "index_select": (between(lambda x: x.index_select(1, torch.tensor([0, 2], device=x.device)), 2), "index_select"),
    "gather": (between(lambda x: x.gather(1, torch.zeros_like(x, dtype=torch.long))), "gather"),
    "scatter": (between(lambda x: x.scatter(1, torch.zeros_like(x, dtype=torch.long), x)), "scatter"),
    "index_copy": (
        between(lambda x: x.index_copy(1, torch.tensor([0], device=x.device), x.mean(1, keepdim=True))),
        "index_copy",
    ),
    "written channels": (between(lambda x: x.index_fill(1, torch.tensor([0, 2], device=x.device), 0.0)), "index_fill"),
    "take": (between(lambda x: x.take(torch.zeros(2, 8, 6, 6, dtype=torch.long, device=x.device))), "take"),
    "its own mask": (
        between(lambda x: x * x[x > 0].mean()),
        "the network itself asks where its channels are not zero",
    ),
    "masked_scatter": (between(lambda x: x.masked_scatter(x > 0, x)), "masked_scatter"),
}


@pytest.mark.parametrize("name", FROZEN)
def test_indices_of_channels_freeze_them(name: str) -> None:
    network, reason = FROZEN[name]
    structure = trace(network, IMAGE[:2])
    assert not structure.group_of("a").prunable
    assert reason in structure.frozen["a"]
    check(Case(network, IMAGE[:2], {"b"}))


def test_an_embedding_tied_with_the_output_layer_loses_columns_of_both() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        x = n.words(x)
        return (x + torch.relu(n.a(x))) @ n.words.weight.T

    network = Net(run, words=nn.Embedding(7, 10), a=nn.Linear(10, 10))
    structure = oracle.check_dead(network, (WORDS,))
    oracle.check_saved(network, (WORDS,))
    columns, rows = (group for group in structure.groups if "words" in group.layers)
    assert (columns.key, rows.key) == ("words", "words.weight")
    assert columns.layers == ["words", "a"]
    assert structure.group_of("words") is columns
    assert "looks up places" in str(rows.reason)
    assert not structure.frozen
    assert structure.widths(Plan({"words": [0, 1]})) == {"words": 2, "a": 2}


def test_a_tensor_written_at_places_must_have_the_same_channels() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        y[:, 1:3] = n.b(x)[:, [0, 4]]
        return n.fc(y.relu())

    network = Net(run, a=nn.Linear(12, 8), b=nn.Linear(12, 8), fc=nn.Linear(8, 4))
    structure = check(Case(network, TOKENS, {"a", "b"}))
    assert structure.group_of("a") is structure.group_of("b")


def test_features_are_not_tokens() -> None:
    """The only axis is that of the channels."""
    structure = trace(mlp(lambda x: x[:, [0, 1, 2, 3, 4, 5, 6, 7]]), FEATURES)
    assert "index" in structure.frozen["a"]
