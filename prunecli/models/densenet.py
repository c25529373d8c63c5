"""DenseNet for CIFAR (Huang et al. 2017): the plain form, and BC with bottlenecks and compression.

Convolutions start from N(0, 2 / (k² Cout)), as in Network Slimming and RVNP. The scale of batch normalisation starts at
1; Network Slimming wants 0.5, and a `selection` of channels in front of each batch norm that reads the maps of earlier
layers, which then all stay. RVNP's "BC-100" command builds the plain form; this one has the bottlenecks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunecli.models.arguments import Channels, Classes, Gamma, Width
from prunecli.models.layers import conv, initialise, selection


class Plain(nn.Module):
    """bn - ReLU - 3 x 3 convolution; its `growth` new maps are appended to its input."""

    def __init__(self, inputs: int, growth: int, select: bool) -> None:
        super().__init__()
        self.select = selection(inputs, select)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, inputs + growth, H, W] of maps [N, inputs, H, W]."""
        return torch.cat((x, self.conv1(F.relu(self.bn1(self.select(x))))), 1)


class Bottleneck(nn.Module):
    """bn - ReLU - 1 x 1 convolution to 4 growth maps - bn - ReLU - 3 x 3 convolution, appended to the input."""

    def __init__(self, inputs: int, growth: int, select: bool) -> None:
        super().__init__()
        self.select = selection(inputs, select)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, 4 * growth, 1)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = conv(4 * growth, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, inputs + growth, H, W] of maps [N, inputs, H, W]."""
        out = self.conv1(F.relu(self.bn1(self.select(x))))
        return torch.cat((x, self.conv2(F.relu(self.bn2(out)))), 1)


class Transition(nn.Module):
    """bn - ReLU - 1 x 1 convolution - 2 x 2 average pooling."""

    def __init__(self, inputs: int, outputs: int, select: bool) -> None:
        super().__init__()
        self.select = selection(inputs, select)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, outputs, H // 2, W // 2] of maps [N, inputs, H, W]."""
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(self.select(x)))), 2)


class DenseNet(nn.Module):
    """A 3 x 3 stem of 2 growth maps, three dense blocks with transitions between, batch norm, ReLU, classifier."""

    def __init__(self, depth: int, num_classes: int, in_channels: int, growth: int, bc: bool, select: bool) -> None:
        super().__init__()
        layers = (depth - 4) // 6 if bc else (depth - 4) // 3
        block = Bottleneck if bc else Plain
        channels = 2 * growth
        self.conv1 = conv(in_channels, channels, 3)

        def dense() -> nn.Sequential:
            nonlocal channels
            blocks = [block(channels + i * growth, growth, select) for i in range(layers)]
            channels += layers * growth
            return nn.Sequential(*blocks)

        def transition() -> Transition:
            nonlocal channels
            inputs, channels = channels, channels // 2 if bc else channels
            return Transition(inputs, channels, select)

        self.dense1, self.trans1 = dense(), transition()
        self.dense2, self.trans2 = dense(), transition()
        self.dense3 = dense()
        self.select = selection(channels, select)
        self.bn = nn.BatchNorm2d(channels)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, C, H, W]."""
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.trans2(self.dense2(x))
        x = self.avgpool(F.relu(self.bn(self.select(self.dense3(x)))))
        return self.fc(x.flatten(1))  # type: ignore[no-any-return]


def densenet(
    depth: int,
    *,
    num_classes: Classes = 10,
    in_channels: Channels = 3,
    growth: Width = 12,
    gamma: Gamma = 1.0,
    selection: bool = False,
) -> nn.Module:
    """DenseNet-`depth` without bottlenecks or compression, depth = 3n + 4."""
    network = DenseNet(depth, num_classes, in_channels, growth, bc=False, select=selection)
    initialise(network, gamma)
    return network


def densenet_bc(
    depth: int,
    *,
    num_classes: Classes = 10,
    in_channels: Channels = 3,
    growth: Width = 12,
    gamma: Gamma = 1.0,
    selection: bool = False,
) -> nn.Module:
    """DenseNet-BC-`depth`, depth = 6n + 4: bottlenecks, and transitions that halve the maps."""
    network = DenseNet(depth, num_classes, in_channels, growth, bc=True, select=selection)
    initialise(network, gamma)
    return network
