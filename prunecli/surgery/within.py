"""The tensors within whatever a network returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from numbers import Number
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor within containers and objects of any class; modules and functions are not looked into."""
    waiting: list[Any] = [value]
    seen: dict[int, Any] = {}  # holds them, so that no other gets the same id
    while waiting:
        for item in tree_leaves(waiting.pop()):
            if isinstance(item, Tensor):
                yield item
            elif not (item is None or id(item) in seen or isinstance(item, str | Number | nn.Module) or callable(item)):
                seen[id(item)] = item
                if isinstance(item, Mapping):
                    waiting += item.values()
                elif isinstance(item, list | tuple | set | frozenset):
                    waiting += item
                waiting += getattr(item, "__dict__", {}).values()
                names = (name for kind in type(item).__mro__ for name in _slots(kind))
                waiting += [getattr(item, name, None) for name in names]


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
