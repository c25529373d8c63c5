"""Pre-activation residual networks with bottlenecks for CIFAR (He et al. 2016b), as in Network Slimming and RVNP.

Convolutions start from N(0, 2 / (k² Cout)). The scale of batch normalisation starts at 1; Network Slimming wants 0.5,
and a `selection` of channels in front of each batch norm that reads the residual stream, which then keeps its width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from prunecli.models.arguments import Channels, Classes, Gamma, Width
from prunecli.models.layers import conv, initialise, selection


class Bottleneck(nn.Module):
    """Batch norm and ReLU before each of three convolutions; nothing after the addition."""

    def __init__(self, inputs: int, width: int, stride: int, select: bool) -> None:
        super().__init__()
        outputs = 4 * width
        self.select = selection(inputs, select)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, width, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, outputs, 1)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride))  # of the raw input, without batch norm

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, 4 width, ceil(H / stride), ceil(W / stride)] of maps [N, inputs, H, W]."""
        out = self.conv1(F.relu(self.bn1(self.select(x))))
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        return out + self.downsample(x)  # type: ignore[no-any-return]


class PreResNet(nn.Module):
    """A 3 x 3 stem, three stages of `blocks` bottlenecks, batch norm, ReLU, average pooling, linear classifier."""

    def __init__(self, blocks: int, num_classes: int, in_channels: int, width: int, select: bool) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width, 3)
        self.layer1 = _stage(width, width, blocks, 1, select)
        self.layer2 = _stage(4 * width, 2 * width, blocks, 2, select)
        self.layer3 = _stage(8 * width, 4 * width, blocks, 2, select)
        self.select = selection(16 * width, select)
        self.bn = nn.BatchNorm2d(16 * width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, C, H, W]."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = self.avgpool(F.relu(self.bn(self.select(x))))
        return self.fc(x.flatten(1))  # type: ignore[no-any-return]


def _stage(inputs: int, width: int, blocks: int, stride: int, select: bool) -> nn.Sequential:
    rest = (Bottleneck(4 * width, width, 1, select) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(inputs, width, stride, select), *rest)


def preresnet(
    depth: int,
    *,
    num_classes: Classes = 10,
    in_channels: Channels = 3,
    width: Width = 16,
    gamma: Gamma = 1.0,
    selection: bool = False,
) -> nn.Module:
    """PreResNet-`depth`, depth = 9n + 2, with n bottlenecks a stage."""
    network = PreResNet((depth - 2) // 9, num_classes, in_channels, width, selection)
    initialise(network, gamma)
    return network
