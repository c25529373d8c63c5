"""Wide residual networks (Zagoruyko and Komodakis 2016) as in the code of ASL.

Against the original: convolutions have biases, and a block's stride is on its second convolution. PyTorch's default
initialisation, as there.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from prunecli.errors import UsageError
from prunecli.models.arguments import Channels, Classes
from prunecli.models.layers import conv


class Block(nn.Module):
    """Batch norm and ReLU before each of two 3 x 3 convolutions; the shortcut takes the raw input."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, width, 3, bias=True)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride, bias=True)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != width:
            self.downsample = nn.Sequential(conv(inputs, width, 1, stride, bias=True))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, width, ceil(H / stride), ceil(W / stride)] of maps [N, inputs, H, W]."""
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        return out + self.downsample(x)  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """A 3 x 3 stem of 16 maps, three stages of 16, 32 and 64 times `widen` maps, batch norm, ReLU, classifier."""

    def __init__(self, blocks: int, widen: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, 16, 3, bias=True)
        self.layer1 = _stage(16, 16 * widen, blocks, 1)
        self.layer2 = _stage(16 * widen, 32 * widen, blocks, 2)
        self.layer3 = _stage(32 * widen, 64 * widen, blocks, 2)
        self.bn = nn.BatchNorm2d(64 * widen)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * widen, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, C, H, W]."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = self.avgpool(F.relu(self.bn(x)))
        return self.fc(x.flatten(1))  # type: ignore[no-any-return]


def _stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, width, stride), *(Block(width, width, 1) for _ in range(blocks - 1)))


def wrn(depth: int, widen: int, *, num_classes: Classes = 10, in_channels: Channels = 3) -> nn.Module:
    """WRN-`depth`-`widen`, depth = 6n + 4. Raises UsageError for other depths, and past 250 layers or 32 times."""
    if depth < 10 or depth > 250 or (depth - 4) % 6:
        nearby = min(max(6 * round((depth - 4) / 6) + 4, 10), 250)
        raise UsageError(f"wrn-{depth}-{widen}: no wide ResNet has depth {depth}", f"nearest: wrn-{nearby}-{widen}")
    if not 1 <= widen <= 32:
        raise UsageError(f"wrn-{depth}-{widen}: the width factor must be 1 to 32", "the papers use 1 to 20")
    return WideResNet((depth - 4) // 6, widen, num_classes, in_channels)
