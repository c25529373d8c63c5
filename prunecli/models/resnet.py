"""Residual networks (He et al. 2016a): three stages for CIFAR, four stages with either stem, and SWD's variant of both.

Convolutions start from N(0, 2 / (k² Cout)) and batch normalisation from 1, as in RVNP's code and in torchvision. Names
of modules are torchvision's, so that its ImageNet weights fit the four-stage networks with the ImageNet stem.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from prunecli.models.arguments import Channels, Classes, Gamma, Width
from prunecli.models.layers import conv, initialise

Shortcut = Literal["A", "projection"]
Stem = Literal["cifar", "imagenet"]


def projection(inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> nn.Sequential | None:
    """The 1 x 1 convolution and batch norm of a projection shortcut; None where the shortcut has no weights."""
    if shortcut == "A" or (stride == 1 and inputs == outputs):
        return None
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def option_a(x: Tensor, stride: int, outputs: int) -> Tensor:
    """The shortcut without weights: every `stride`-th pixel, zero channels appended up to `outputs`."""
    if stride == 1:
        return x
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, outputs - x.shape[1]))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions, the shortcut added, SWD's batch norm of the sum if wanted, ReLU."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut, post_add_bn: bool) -> None:
        super().__init__()
        self.stride = stride
        self.more = width - inputs
        self.conv1 = conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = projection(inputs, width, stride, shortcut)
        self.bn_add = nn.BatchNorm2d(width) if post_add_bn else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, width, ceil(H / stride), ceil(W / stride)] of maps [N, inputs, H, W]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        # The width comes from the tensor: the block may be cut later. Absent convolutions put out none.
        outputs = out.shape[1] if isinstance(out, Tensor) else x.shape[1] + self.more
        shortcut = self.downsample(x) if self.downsample is not None else option_a(x, self.stride, outputs)
        return F.relu(self.bn_add(out + shortcut))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (with the stride) and 1 x 1 convolutions, the last four times as wide; then as in BasicBlock."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut, post_add_bn: bool) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = projection(inputs, 4 * width, stride, shortcut)
        self.bn_add = nn.BatchNorm2d(4 * width) if post_add_bn else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, 4 width, ceil(H / stride), ceil(W / stride)] of maps [N, inputs, H, W]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = self.downsample(x) if self.downsample is not None else x
        return F.relu(self.bn_add(out + shortcut))


class ResNet(nn.Module):
    """Stem, stages of doubling width and halving map size, global average pooling, linear classifier."""

    def __init__(
        self, stages: list[nn.Sequential], stem: Stem, num_classes: int, in_channels: int, width: int, features: int
    ) -> None:
        super().__init__()
        large = stem == "imagenet"
        self.conv1 = conv(in_channels, width, 7, 2) if large else conv(in_channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        self.layer1, self.layer2, self.layer3, *rest = stages
        self.layer4 = rest[0] if rest else nn.Identity()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, C, H, W]."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


def _stages(
    block: type[BasicBlock | Bottleneck], counts: tuple[int, ...], width: int, shortcut: Shortcut, post_add_bn: bool
) -> list[nn.Sequential]:
    stages = []
    inputs = width
    for index, count in enumerate(counts):
        blocks = []
        for position in range(count):
            stride = 2 if index > 0 and position == 0 else 1
            blocks.append(block(inputs, width << index, stride, shortcut, post_add_bn))
            inputs = (width << index) * block.expansion
        stages.append(nn.Sequential(*blocks))
    return stages


def three_stages(
    depth: int,
    *,
    num_classes: Classes = 10,
    in_channels: Channels = 3,
    width: Width = 16,
    shortcut: Shortcut = "A",
    post_add_bn: bool = False,
    gamma: Gamma = 1.0,
) -> nn.Module:
    """ResNet-`depth` for CIFAR, depth = 6n + 2: three stages of n basic blocks, `width` times 1, 2 and 4 channels.

    RVNP, GReg: shortcut A. PGP: projection. SWD: projection and `post_add_bn`, width 16 or 64.
    """
    stages = _stages(BasicBlock, ((depth - 2) // 6,) * 3, width, shortcut, post_add_bn)
    network = ResNet(stages, "cifar", num_classes, in_channels, width, 4 * width)
    initialise(network, gamma)
    return network


FOUR_STAGES: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


def four_stages(
    depth: int,
    *,
    num_classes: Classes = 10,
    in_channels: Channels = 3,
    width: Width = 64,
    stem: Stem = "cifar",
    post_add_bn: bool = False,
    gamma: Gamma = 1.0,
) -> nn.Module:
    """ResNet-`depth` of the ImageNet family with projection shortcuts.

    `stem`: one 3 x 3 convolution for small images, or 7 x 7 with stride 2 and pooling. SWD: `post_add_bn`.
    """
    block, counts = FOUR_STAGES[depth]
    stages = _stages(block, counts, width, "projection", post_add_bn)
    network = ResNet(stages, stem, num_classes, in_channels, width, 8 * width * block.expansion)
    initialise(network, gamma)
    return network
