"""Twins: copies of a network that hold no values, or the same ones, for running without touching the network itself."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from prunecli.errors import UsageError

META = torch.device("meta")


def twin_of(network: nn.Module, device: torch.device | None) -> nn.Module:
    """A copy of the module tree, its tensors empty ones on `device` or, if None, clones; tied ones stay tied.

    Raises UsageError for a network that holds what cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in network.modules():
        for attribute, value in vars(module).items():
            if isinstance(value, Tensor):
                memo[id(value)] = _stand_in(value, device)
            elif type(value) in (dict, OrderedDict, set) and not value:  # most of what a module holds are empty hooks
                memo[id(value)] = type(value)()
            elif type(value) in (list, tuple, dict) and attribute not in ("_parameters", "_buffers", "_modules"):
                leaves = () if is_plain(value) else tree_leaves(value)
                memo |= {id(x): _stand_in(x, device) for x in leaves if isinstance(x, Tensor)}
    for tensor in (*network.parameters(), *network.buffers()):
        memo[id(tensor)] = _stand_in(tensor, device)
    try:
        return copy.deepcopy(network, memo)
    except Exception as error:  # of any kind: classes say themselves how they are copied
        raise UsageError(
            f"the network cannot be copied: {type(error).__name__}: {error}",
            "let its modules hold nothing of that kind",
        ) from error


def inputs_on(inputs: tuple[Any, ...], device: torch.device | None) -> tuple[Any, ...]:
    """The same for inputs of any nesting."""
    result: tuple[Any, ...] = tree_map_only(Tensor, lambda tensor: _stand_in(tensor, device), inputs)
    return result


def own_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their first name; of buffers that are not saved only those of real numbers.

    The others are tables of places, which no cut renumbers.
    """
    saved = network.state_dict(keep_vars=True)
    named = (*network.named_parameters(), *network.named_buffers())
    return {name: tensor for name, tensor in named if name in saved or tensor.is_floating_point()}


def all_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those of the `state_dict` by every name that they have there."""
    return {**dict(network.named_buffers()), **network.state_dict(keep_vars=True)}


def is_plain(value: Any) -> bool:
    """Is this a number, a word or a tuple of integers, as most of what modules hold?"""
    return isinstance(value, str | int | float | None) or (isinstance(value, tuple) and {*map(type, value)} == {int})


def _stand_in(tensor: Tensor, device: torch.device | None) -> Tensor:
    stand_in = tensor.detach().clone() if device is None else torch.empty_like(tensor, device=device)
    return nn.Parameter(stand_in, requires_grad=False) if isinstance(tensor, nn.Parameter) else stand_in
