"""Sizes that modules keep beside their tensors (`out_channels`, `num_features`, ...), put right after a cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from prunecli.sidecar import Surgery
from prunecli.surgery.ledger import Axis

Value = int | list[int]


def derived(module: nn.Module, *, whole_groups: bool = False) -> dict[str, Value]:
    """Sizes as the module's tensors have them now, for the classes of PyTorch that keep them.

    `whole_groups` says that a grouped convolution lost whole groups rather than positions in every group.
    """
    match module:
        case _ConvNd():
            first, second = module.weight.shape[:2]
            groups = module.groups
            if whole_groups and groups > 1:
                before = module.in_channels if isinstance(module, _ConvTransposeNd) else module.out_channels
                groups = first // (before // groups)
            ends = (first, second * groups) if isinstance(module, _ConvTransposeNd) else (second * groups, first)
            return {"in_channels": ends[0], "out_channels": ends[1], "groups": groups}
        case nn.Linear():
            return {"in_features": module.weight.shape[1], "out_features": module.weight.shape[0]}
        case nn.Bilinear():
            outputs, first, second = module.weight.shape
            return {"in1_features": first, "in2_features": second, "out_features": outputs}
        case nn.Embedding() | nn.EmbeddingBag():
            return {"num_embeddings": module.weight.shape[0], "embedding_dim": module.weight.shape[1]}
        case _NormBase(weight=Tensor() as tensor) | _NormBase(running_mean=Tensor() as tensor):
            return {"num_features": len(tensor)}
        case nn.GroupNorm() if module.affine:
            return {"num_channels": len(module.weight)}
        case nn.PReLU():
            return {"num_parameters": len(module.weight)}
        case nn.LayerNorm() | nn.RMSNorm() if module.elementwise_affine:
            return {"normalized_shape": list(module.weight.shape)}
    return {}


def changed(network: nn.Module, layers: Iterable[str], whole_groups: Mapping[str, bool]) -> dict[str, dict[str, Value]]:
    """Sizes of these layers that no longer agree with their tensors, and what they should be."""
    result = {}
    for layer in layers:
        module = network.get_submodule(layer)
        with _made_anew(module):
            sizes = derived(module, whole_groups=whole_groups.get(layer, False))
        wrong = {name: value for name, value in sizes.items() if _plain(getattr(module, name)) != value}
        if wrong:
            result[layer] = wrong
    return result


def cut_groups(network: nn.Module, record: Surgery) -> dict[str, bool]:
    """Did the grouped convolutions that `record` has cut lose whole groups, rather than positions in every group?"""
    modules = dict(network.named_modules())
    convolutions = {layer: m for layer in record.attributes if isinstance(m := modules.get(layer), _ConvNd)}
    return {layer: "groups" in record.attributes[layer] for layer, m in convolutions.items() if m.groups > 1}


@contextmanager
def _made_anew(module: nn.Module) -> Iterator[None]:
    """Weights that a module makes of others are those of now, and making them changes nothing (no power iteration)."""
    modes = {part: part.training for part in module.modules()}
    for part in modes:
        part.training = False
    try:
        with torch.no_grad():
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod):
                    hook(module, ())
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def counted(network: nn.Module, numbers: Mapping[Axis, int]) -> dict[str, dict[str, Value]]:
    """New values of attributes, by layer and name, of which `numbers` gives those that change, by item of a list."""
    result: dict[str, dict[str, Value]] = {}
    for (attribute, item), number in numbers.items():
        layer, _, name = attribute.rpartition(".")
        old = result.get(layer, {}).get(name, getattr(network.get_submodule(layer), name))
        new = number if isinstance(old, int) else [number if i == item else n for i, n in enumerate(old)]
        result.setdefault(layer, {})[name] = new
    return result


def set_attributes(network: nn.Module, attributes: Mapping[str, Mapping[str, Value]]) -> None:
    """Set recorded attributes on the modules of a network; several numbers as the list or tuple that they were."""
    for layer, values in attributes.items():
        module = network.get_submodule(layer)
        for name, value in values.items():
            setattr(module, name, type(getattr(module, name))(value))


def _plain(value: int | tuple[int, ...]) -> Value:
    return value if isinstance(value, int) else list(value)
