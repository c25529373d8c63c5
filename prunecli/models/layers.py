"""What the CIFAR families share: the convolution with "same" padding and the initialisation of their papers."""

from __future__ import annotations

from torch import nn


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
