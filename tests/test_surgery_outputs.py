"""Whatever a network returns, or leaves in its attributes, keeps its channels."""

from __future__ import annotations

from collections import UserDict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from handmade import FEATURES, IMAGE, Net, conv, pooled
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunecli.errors import UsageError
from prunecli.surgery import trace


@dataclass
class Output:
    features: Any
    loss: Tensor | None = None


class Dict(dict[str, Any]):
    pass


class Slots:
    __slots__ = ("features",)

    def __init__(self, features: Tensor) -> None:
        self.features = features


Pair = namedtuple("Pair", "first second")


def _in_a_ring(features: Tensor) -> Output:
    output = Output([features])
    output.features.append(output)
    return output


WRAPPED: dict[str, Callable[[Tensor], Any]] = {
    "a tensor": lambda y: y,
    "a dataclass": Output,
    "a nested one": lambda y: [Output({"deeper": (1, Output(y))})],
    "a ring": _in_a_ring,
    "a subclass of dict": lambda y: Dict(features=y),
    "a mapping": lambda y: UserDict(features=y),
    "slots": Slots,
    "a named tuple": lambda y: Pair(None, y),
    "a set": lambda y: {y},
    "a queue": lambda y: deque([y]),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_outputs_of_any_class_stay(name: str) -> None:
    network = Net(lambda n, x: WRAPPED[name](n.b(n.a(x))), a=conv(3, 8), b=conv(8, 6))
    assert trace(network, IMAGE).frozen == {"b": "its channels are outputs of the network"}


class Keeping(nn.Module):
    """Leaves an auxiliary output and a list of features where its users look for them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aux, self.fc = conv(3, 8), conv(8, 6), conv(8, 5), nn.Linear(6, 4)
        self.aux_output: Tensor | None = None
        self.features: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        self.aux_output = self.aux(y)
        y = self.b(y)
        self.features = [y]
        return pooled(self, y)


def test_what_the_network_keeps_in_attributes_stays() -> None:
    network = Keeping()
    structure = trace(network, IMAGE)
    assert structure.frozen == {
        "b": "the network keeps its channels in features",
        "aux": "the network keeps its channels in aux_output",
        "fc": "its channels are outputs of the network",
    }
    assert structure.by_key["a"].prunable
    assert network.aux_output is None
    assert not network.features
    network(IMAGE)  # these have gradients, which a copy of them would not
    assert trace(network, IMAGE).frozen == structure.frozen
    assert network.features[0].grad_fn is not None


def test_what_the_network_keeps_in_objects_stays() -> None:
    def keep(n: Net, x: Tensor) -> Tensor:
        n.first = n.second = Output(n.a(x))
        return n.fc(n.first.features)

    network = Net(keep, a=nn.Linear(12, 8), fc=nn.Linear(8, 4))
    assert trace(network, FEATURES).frozen["a"] == "the network keeps its channels in first"


def test_weights_made_of_weights_are_no_outputs() -> None:
    network = Net(lambda n, x: n.fc(n.a(x)), a=nn.utils.spectral_norm(nn.Linear(12, 8)), fc=nn.Linear(8, 4))
    assert trace(network, FEATURES).by_key["a"].prunable


class Demanding(nn.Module):
    """Needs a target in train mode, and has a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc, self.unused = conv(3, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        y = self.a(x)
        if self.training and target is None:
            raise ValueError("no target")
        return pooled(self, y)


def test_train_mode_is_not_needed_for_layers_that_are_never_called() -> None:
    structure = trace(Demanding(), IMAGE)
    assert structure.frozen["unused"].startswith("never called")
    assert structure.by_key["a"].prunable
    with pytest.raises(UsageError, match="no target"):
        trace(Demanding(), IMAGE, train=True)


def test_parameters_are_used_without_calling_their_module() -> None:
    network = Net(lambda n, x: n.fc(n.a(x) * n.scales[0]), a=nn.Linear(12, 8), fc=nn.Linear(8, 4),
                  scales=nn.ParameterList([torch.ones(8)]), unused=nn.ParameterList([torch.ones(8)]))  # fmt: skip
    structure = trace(network, FEATURES)
    assert structure.frozen.keys() == {"fc", "unused"}
    assert "scales.0" in {member.tensor for member in structure.by_key["a"].members}


class Auxiliary(nn.Module):
    """A head that only train mode runs, up to a loss that needs targets."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc, self.aux, self.head = conv(3, 8), nn.Linear(8, 4), conv(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
        y = self.a(x)
        if not self.training:
            return pooled(self, y)
        return pooled(self, y), cross_entropy(self.head(self.aux(y).mean((2, 3))), target)


def test_what_runs_only_where_train_mode_fails_stays() -> None:
    structure = trace(Auxiliary(), IMAGE)
    assert {layer for layer, why in structure.frozen.items() if "train mode alone" in why} == {"aux", "head"}
    inputs = {member.tensor for member in structure.by_key["a"].members if member.role == "in"}
    assert inputs == {"fc.weight", "aux.weight"}


class Training(nn.Module):
    """Does something with its channels in train mode only, in a function of its own."""

    def __init__(self, act: Callable[[Tensor], Tensor], *, returns: bool) -> None:
        super().__init__()
        self.a, self.fc, self.act, self.returns = nn.Linear(12, 8), nn.Linear(8, 3), act, returns

    def forward(self, x: Tensor) -> Any:
        return self._head(self.a(x))

    def _head(self, y: Tensor) -> Any:
        z = self.fc(self.act(y) if self.training else y)
        return (z, y) if self.training and self.returns else z


def test_what_only_train_mode_does_is_seen() -> None:
    def relative(y: Tensor) -> Tensor:
        return y * y.amax(1, keepdim=True)

    assert trace(Training(nn.ReLU(), returns=False), FEATURES).group_of("a").prunable
    assert "outputs of the network" in trace(Training(nn.ReLU(), returns=True), FEATURES).frozen["a"]
    assert "amax" in trace(Training(relative, returns=False), FEATURES).frozen["a"]


class Decorated(Training):
    """The same behind a decorator and a property."""

    @property
    def trains(self) -> bool:
        return self.training

    @torch.autocast("cpu", enabled=False)
    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        return (self.fc(y), y) if self.trains else self.fc(y)


class Wrapped(Training):
    @torch.autocast("cpu", enabled=False)
    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        return (self.fc(y), y) if self.training else self.fc(y)


@pytest.mark.parametrize("kind", [Decorated, Wrapped])
def test_train_mode_is_seen_behind_decorators_and_properties(kind: type[Training]) -> None:
    assert "outputs of the network" in trace(kind(nn.ReLU(), returns=True), FEATURES).frozen["a"]
