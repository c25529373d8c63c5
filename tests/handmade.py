"""Small networks made for one rule each, and everything that must hold of a cut of each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import oracle
import pytest
import torch
from torch import Tensor, nn

from prunecli.surgery import Structure, trace


class Net(nn.Module):
    """A network written as its layers, parameters and buffers, and a function of them and the inputs."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module | nn.Parameter | Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)
        self._run = forward

    def forward(self, *inputs: Any) -> Any:
        return self._run(self, *inputs)


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def pooled(net: Net, x: Tensor) -> Tensor:
    """The head: averages over positions."""
    return net.fc(x.mean((2, 3)))


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape))


IMAGE = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))
FEATURES = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2))


def simple(act: Callable[[Tensor], Tensor]) -> Net:
    """A function of the channels between two convolutions."""
    return Net(lambda n, x: pooled(n, n.b(act(n.a(x)))), a=conv(3, 8), b=conv(8, 6), fc=nn.Linear(6, 4))


def between(move: Callable[[Tensor], Tensor], width: int = 8) -> Net:
    """A function that makes `width` channels of 8 between two convolutions."""
    return Net(lambda n, x: pooled(n, n.b(move(n.a(x)))), a=conv(3, 8), b=conv(width, 6), fc=nn.Linear(6, 4))


def normed(norm: nn.Module) -> Net:
    """A module of 8 channels between two convolutions."""
    return Net(lambda n, x: pooled(n, n.b(n.norm(n.a(x)))), a=conv(3, 8), norm=norm, b=conv(8, 6), fc=nn.Linear(6, 4))


def mlp(act: Callable[[Tensor], Tensor]) -> Net:
    """A function or module of 8 features of tokens between two linear layers."""
    parts = {"act": act} if isinstance(act, nn.Module) else {}
    fc = nn.Linear(8, 4)
    return Net(lambda n, x: n.fc(n.act(n.a(x)) if parts else act(n.a(x))), a=nn.Linear(12, 8), fc=fc, **parts)


@dataclass
class Case:
    """A network, its inputs, the layers whose outputs may be cut.

    `changes` is part of the reason why a cut changes the function, if it does; `masked` and `dead` say which of the
    oracle's properties hold, both where it does not change. Zeroing the weights that read a unit does not mask it where
    other operations read it too, such as sums; zeroing those that make it does not kill it where act(0) is not 0.
    """

    network: nn.Module
    inputs: Any
    cut: set[str]
    changes: str = ""
    masked: bool | None = None
    dead: bool | None = None


def check(case: Case) -> Structure:
    """Which layers are cut, whether that is said to change the function and does, and that it is saved and loaded."""
    inputs = case.inputs if isinstance(case.inputs, tuple) else (case.inputs,)
    structure = trace(case.network, *inputs)
    groups = [group for group in structure.groups if group.prunable]
    assert {layer for group in groups for layer in group.layers} == case.cut, structure.frozen
    said = [group.changes_function for group in groups if group.changes_function]
    assert bool(said) == bool(case.changes)
    assert case.changes in " ".join(said)
    for holds, check_property in ((case.masked, oracle.check_masking), (case.dead, oracle.check_dead)):
        if not case.changes if holds is None else holds:
            check_property(case.network, inputs)
        else:
            with pytest.raises(AssertionError, match="differ"):
                check_property(case.network, inputs)
    oracle.check_saved(case.network, inputs)
    return structure
