"""Modules that a network does without: what stands in their place, and what that puts out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from prunecli.errors import DamagedError
from prunecli.sidecar import Surgery

_HINT = "the sidecar was written for another architecture"
_SUMS = {"add", "add_", "__add__", "__radd__", "__iadd__"}


class Nothing:
    """What an absent module puts out: a zero that takes no memory and no time.

    A sum with it is the other summand, and any other function of it is nothing again. It has neither shape nor values.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """PyTorch calls this in place of any function that gets one."""
        if func.__name__ in _SUMS:
            for place, summand in enumerate([*args, *(kwargs or {}).values()]):
                if isinstance(summand, Tensor):
                    # a tensor of its own, as a sum is: later operations may work in place
                    return summand if place == 0 and func.__name__ in ("add_", "__iadd__") else summand.clone()
        return cls()

    def __add__(self, other: Any) -> Any:
        return other.clone() if isinstance(other, Tensor) else self

    def _still_nothing(self, *_: Any, **__: Any) -> Nothing:
        return self

    __radd__ = __iadd__ = __add__
    __mul__ = __rmul__ = __truediv__ = __neg__ = _still_nothing

    def __getattr__(self, name: str) -> Any:
        if callable(getattr(Tensor, name, None)):  # the methods of tensors
            return self._still_nothing
        raise AttributeError(f"an absent module puts out nothing, which has no {name}")


class Absent(nn.Module):
    """Stands where a module was, without parameters, and puts out nothing; with attention, no weights of it either."""

    def __init__(self, instead: nn.Module | None = None) -> None:
        super().__init__()
        self._pair = isinstance(instead, nn.MultiheadAttention)

    def forward(self, *_: Any, **__: Any) -> Nothing | tuple[Nothing, None]:
        """Nothing, whatever comes in."""
        return (Nothing(), None) if self._pair else Nothing()


def check_absent(network: nn.Module, record: Surgery) -> None:
    """Raise `DamagedError` unless what the record says is absent is in the dense network, with those parameters."""
    modules = dict(network.named_modules(remove_duplicate=False))
    for name, lost in record.absent.items():
        if name not in modules:
            raise DamagedError(f"the record of cuts takes {name} away, which the network has not", _HINT)
        has = {key: list(parameter.shape) for key, parameter in modules[name].named_parameters()}
        said = {key: gone.shape for key, gone in lost.items()}
        if has != said:
            key = next(key for key in {**has, **said} if has.get(key) != said.get(key))
            raise DamagedError(
                f"the record of cuts takes {name}.{key} of shape {said.get(key)} away, the network has {has.get(key)}",
                _HINT,
            )


def leave_out(network: nn.Module, modules: Iterable[str]) -> None:
    """Replace these modules of a network, in place. Raises AttributeError for a name that is none of a module."""
    for name in modules:
        parent, _, attribute = name.rpartition(".")
        stand_in = Absent(network.get_submodule(name)).train(network.training)
        network.get_submodule(parent)._modules[attribute] = stand_in
