"""First weights of a scratch run: the architecture's own initialisation in smaller shapes, or a sparse one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Layer = nn.Linear | _ConvNd


def layers(network: nn.Module) -> dict[str, Layer]:
    """Convolutions and linear layers by the names of their weights."""
    return {
        f"{name}.weight" if name else "weight": module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, _ConvTransposeNd)
    }


def fit_scale(network: nn.Module, dense: Mapping[str, Tensor]) -> None:
    """Give the layers of a freshly drawn and then cut `network` the scale that its initialisation has in their shape.

    `dense` holds the weights as drawn. He's fan-out initialisation, N(0, 2 / (k² Cout)), is recognised from the draw
    (within 5 standard errors of its variance). Every other one keeps the variance of a unit's input, as those that go
    by fan-in do exactly, PyTorch's default among them; its bias scales with the weight.
    """
    with torch.no_grad():
        for name, module in layers(network).items():
            old, new = dense[name], module.weight
            if old.shape == new.shape:
                continue
            fan_out, error = old.numel() / old.shape[1], math.sqrt(2 / old.numel())
            if isinstance(module, _ConvNd) and abs(float(old.var()) * fan_out / 2 - 1) < 5 * error:
                new *= math.sqrt(old.shape[0] / new.shape[0])
                continue
            scale = math.sqrt((old.numel() / old.shape[0]) / (new.numel() / new.shape[0]))
            new *= scale
            if module.bias is not None:
                module.bias *= scale


def sparse(network: nn.Module, masks: Mapping[str, Tensor], scaled: bool, generator: torch.Generator) -> None:
    """Redraw masked layers from N(0, 2 / n), n = weights / Cin: those that the mask keeps, or all (`scaled` false).

    Liu et al. 2019, section 4.3; `masks` are boolean, and are not applied here. Layers without a mask stay.
    """
    with torch.no_grad():
        for name, module in layers(network).items():
            if name not in masks:
                continue
            inputs = module.in_features if isinstance(module, nn.Linear) else module.in_channels
            count = int(masks[name].sum()) if scaled else masks[name].numel()
            if count:
                module.weight.normal_(0, math.sqrt(2 * inputs / count), generator=generator)
