"""What the CIFAR families share: the convolution with "same" padding and the initialisation of their papers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelSelection(nn.Module):
    """Hands on the channels `index` [selected] of those that come in; all of them at first.

    In front of a batch norm that heads a block, it lets this and the layer behind lose channels that other readers of
    the same maps keep (Network Slimming). The index is a buffer: it is no parameter, and cut like any other tensor.
    """

    index: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("index", torch.arange(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, selected, H, W] of maps [N, C, H, W]."""
        if not x.is_meta and len(self.index) == x.shape[1]:  # saves a copy; a trace, on meta, is to see the selection
            return x
        return x.index_select(1, self.index)


def selection(channels: int, wanted: bool) -> nn.Module:
    """A channel selection or, unless it is `wanted`, nothing."""
    return ChannelSelection(channels) if wanted else nn.Identity()


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A square convolution that keeps the map's size, up to its stride."""
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=bias)


def initialise(network: nn.Module, gamma: float) -> None:
    """He et al.'s initialisation as in RVNP's code: convolutions N(0, 2 / (k² Cout)), biases 0; batch norm `gamma`, 0.

    Linear layers keep PyTorch's default, as there; VGG sets its own.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.constant_(module.weight, gamma)
