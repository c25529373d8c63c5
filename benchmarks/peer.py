"""torch-pruning 1.6.1 in its default use, as its README shows it, and what it removed from each axis of each tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning.pruner.function import BasePruningFunc

Axis = tuple[str, int]


def cut(network: nn.Module, example: Tensor) -> None:
    """Half of every layer but those of the 1000 classes, by group magnitude, in place."""
    classes = [m for m in network.modules() if 1000 in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))]
    pruner = torch_pruning.pruner.BasePruner(
        network,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=classes,
        in_channel_groups={},  # its defaults, but not the dicts that all pruners share and that keep networks alive
        out_channel_groups={},
    )
    pruner.step()


@contextmanager
def followed() -> Iterator[None]:
    """Inside, every parameter that is cut remembers which slices of the original it has, by axis."""
    original = BasePruningFunc._prune_parameter_and_grad

    def remembering(self: Any, weight: Tensor, keep_idxs: Any, pruning_dim: int) -> nn.Parameter:
        result: nn.Parameter = original(self, weight, keep_idxs, pruning_dim)
        kept, axis = dict(getattr(weight, "kept", {})), pruning_dim % weight.ndim
        before = kept.get(axis, torch.arange(weight.shape[axis]))
        result.kept = kept | {axis: before[torch.as_tensor(keep_idxs, dtype=torch.int64)]}  # type: ignore[attr-defined]
        return result

    BasePruningFunc._prune_parameter_and_grad = remembering
    try:
        yield
    finally:
        BasePruningFunc._prune_parameter_and_grad = original


def keep_masks(network: nn.Module, pruned: nn.Module) -> dict[Axis, Tensor]:
    """What each axis of `network` keeps in `pruned`, a copy cut while `followed`: bool [axis length].

    The running statistics of a batch norm lose what its scale loses.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    masks: dict[Axis, Tensor] = {}
    for name, parameter in pruned.named_parameters():
        for axis, kept in getattr(parameter, "kept", {}).items():
            masks[name, axis] = torch.zeros(shapes[name][axis], dtype=torch.bool).index_fill_(0, kept, True)
    for name in shapes:
        scale = (name.replace("running_mean", "weight"), 0)
        if name.endswith("running_mean") and scale in masks:
            masks[name, 0] = masks[scale]
    return masks


def reads(network: nn.Module) -> set[Axis]:
    """The axes along which weights read their inputs."""
    axes = set()
    for name, module in network.named_modules():
        if not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            continue
        if module.weight.shape[1] > 1 or getattr(module, "groups", 1) == 1:  # a depthwise one reads nothing of its own
            axes.add((f"{name}.weight", int(not getattr(module, "transposed", False))))
    return axes
