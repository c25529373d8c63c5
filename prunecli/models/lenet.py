"""LeNet-5 for 32 x 32 digits: PGP's, and SWD's with a second branch. PyTorch's default initialisation.

ReLU after max pooling gives the same values and gradients as before it, of a quarter of the elements.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from prunecli.models.arguments import Channels, Classes


class LeNet5(nn.Module):
    """Convolutions 5 x 5 of 6, 16 and 120 filters, linear layers of 84 and `num_classes` units (PGP, section 4.1)."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.conv3 = nn.Conv2d(16, 120, 5)
        self.fc1 = nn.Linear(120, 84)
        self.fc2 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, C, 32, 32]."""
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # 6 x 14 x 14
        x = self.middle(x)  # 16 x 5 x 5
        x = F.relu(self.conv3(x))  # 120 x 1 x 1
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)  # type: ignore[no-any-return]

    def middle(self, x: Tensor) -> Tensor:
        """The second stage: convolution, pooling, ReLU."""
        return F.relu(F.max_pool2d(self.conv2(x), 2))


class BranchedLeNet5(LeNet5):
    """LeNet-5 whose second stage is the sum of two parallel branches (SWD, section 4.2 and its code)."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes, in_channels)
        self.conv2_branch = nn.Conv2d(6, 16, 5)

    def middle(self, x: Tensor) -> Tensor:
        """Both branches of the second stage, added after pooling."""
        return super().middle(x) + F.relu(F.max_pool2d(self.conv2_branch(x), 2))


def lenet5(*, num_classes: Classes = 10, in_channels: Channels = 1) -> nn.Module:
    """PGP's LeNet-5: 61,706 parameters, 416,520 MACs."""
    return LeNet5(num_classes, in_channels)


def branches(*, num_classes: Classes = 10, in_channels: Channels = 1) -> nn.Module:
    """SWD's LeNet-5: 64,122 parameters, 656,520 MACs."""
    return BranchedLeNet5(num_classes, in_channels)
