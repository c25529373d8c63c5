"""Why layers are tied: the operations that joined them, on hand-made networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunecli.surgery import trace
from prunecli.surgery.reasons import Bundle, Join, bundles

X = torch.zeros(2, 3, 8, 8)


class Net(nn.Module):
    """Convolutions by name, all [4 to 4] but a, and what a test makes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b, self.c, self.d = (nn.Conv2d(4, 4, 1) for _ in range(3))


def found(network: nn.Module) -> dict[str, Bundle]:
    return {bundle.groups[0].key: bundle for bundle in bundles(trace(network, X))}


def test_a_residual_chain_is_joined_one_addition_after_the_other() -> None:
    class Chain(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x = x + self.b(x)
            x = x + self.c(x)
            return self.d(x)

    chain = found(Chain())
    assert list(chain) == ["a", "d"]
    assert chain["a"].layers == ["a", "b", "c"]
    assert chain["a"].joins == [Join("add", "", ("a", "b")), Join("add", "", ("b", "c"))]
    assert chain["d"].joins == []


def test_a_layer_is_named_that_runs_the_operation() -> None:
    class Gate(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return x * self.b(x).sigmoid()

    class Outer(Net):
        def __init__(self) -> None:
            super().__init__()
            self.gate = Gate()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.gate(x))

    assert found(Outer())["gate.a"].joins == [Join("mul", "gate", ("gate.a", "gate.b"))]


def test_reading_two_layers_with_one_weight_joins_them() -> None:
    class Shared(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.c(x).sum() + self.c(self.b(x)).sum()

    shared = found(Shared())["a"]
    assert shared.layers == ["a", "b"]
    assert shared.joins == [Join("conv2d", "c", ("a", "b"))]


def test_concatenated_layers_that_are_added_to_one_are_joined_by_one_operation() -> None:
    class Wide(Net):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.last = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.last(torch.cat([self.b(x), self.c(x)], 1) + self.wide(x))

    assert found(Wide())["b"].joins == [Join("add", "", ("b", "c", "wide"))]


def test_layers_that_only_meet_in_a_reader_of_both_are_not_tied() -> None:
    class Dense(Net):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.last(torch.cat([x, self.b(x)], 1))

    dense = found(Dense())
    assert [bundle.layers for bundle in dense.values()] == [["a"], ["b"], ["last"]]
    assert not any(bundle.joins for bundle in dense.values())


def test_what_cannot_be_cut_is_kept_together_with_its_ties() -> None:
    class Output(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return x + self.b(x)

    (bundle,) = found(Output()).values()
    assert bundle.layers == ["a", "b"]
    assert [group.reason for group in bundle.groups] == ["its channels are outputs of the network"] * 2
    assert bundle.joins == [Join("add", "", ("a", "b"))]
