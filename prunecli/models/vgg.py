"""VGG with batch normalisation for CIFAR (Simonyan and Zisserman 2015, as in RVNP, GReg and PGP).

RVNP's code, which this follows, starts convolutions from N(0, 2 / (k² Cout)), linear layers from N(0, 0.01²), and the
scale of batch normalisation at 0.5.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta
from torch import Tensor, nn

from prunecli.models.arguments import Channels, Classes, Gamma
from prunecli.models.layers import conv, initialise

# Widths of the five stages; a 2 x 2 maximum pooling stands between stages.
STAGES = {
    11: ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    13: ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
    16: ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    19: ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
}


class VGG(nn.Module):
    """3 x 3 convolutions in five stages, global average pooling, a linear classifier."""

    def __init__(self, depth: int, num_classes: int, in_channels: int, hidden: int, bias: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage in STAGES[depth]:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for width in stage:
                layers += [conv(channels, width, 3, bias=bias), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier: nn.Module = nn.Linear(hidden or channels, num_classes)
        if hidden:
            head = nn.Linear(channels, hidden), nn.BatchNorm1d(hidden), nn.ReLU()
            self.classifier = nn.Sequential(*head, self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, C, H, W]; H and W at least 16."""
        x = self.avgpool(self.features(x))
        return self.classifier(x.flatten(1))  # type: ignore[no-any-return]


def vgg(
    depth: int,
    *,
    num_classes: Classes = 10,
    in_channels: Channels = 3,
    hidden: Annotated[int, Meta(ge=0, le=8192)] = 0,
    bias: bool = False,
    gamma: Gamma = 0.5,
) -> nn.Module:
    """VGG-`depth`. `hidden` > 0 puts a linear layer with batch norm before the classifier (Li et al.'s VGG-16 has 512).

    `bias` gives convolutions a bias (PGP); `gamma` is the initial scale of batch normalisation.
    """
    network = VGG(depth, num_classes, in_channels, hidden, bias)
    initialise(network, gamma)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
    return network
