"""Li et al., Pruning Filters for Efficient ConvNets (ICLR 2017): their published configurations.

In each layer the floor(n (1 - p)) filters with the largest L1 norm are kept, in one shot. In residual networks only
the first convolution of each basic block is pruned (the even numbers, counting from the stem = 1), so that block
outputs and shortcuts never change; layers that are sensitive or at the stages' ends are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence


def _residual(ends: Sequence[int], ratios: Sequence[float], skipped: Sequence[int]) -> dict[int, float]:
    """The first convolutions of basic blocks, by number: a ratio a stage, `ends` the last such number of each stage."""
    starts = [2, *(end + 2 for end in ends)]
    return {
        number: ratio
        for start, end, ratio in zip(starts, ends, ratios, strict=False)
        for number in range(start, end + 1, 2)
        if number not in skipped and ratio > 0
    }


RESNET56, RESNET110, RESNET34 = (18, 36, 54), (36, 72, 108), (6, 14, 26, 32)
SKIPPED34 = (2, 8, 14, 16, 26, 28, 30, 32)

# name -> architecture, its number of convolutions without projections, and the share that each one loses
CONFIGURATIONS = {
    "vgg16-a": ("vgg16", 13, {1: 0.5} | dict.fromkeys(range(8, 14), 0.5)),
    "resnet56-a": ("resnet56", 55, _residual(RESNET56, (0.1, 0.1, 0.1), (16, 20, 38, 54))),
    "resnet56-b": ("resnet56", 55, _residual(RESNET56, (0.6, 0.3, 0.1), (16, 18, 20, 34, 38, 54))),
    "resnet110-a": ("resnet110", 109, _residual(RESNET110, (0.5, 0.0, 0.0), (36,))),
    "resnet110-b": ("resnet110", 109, _residual(RESNET110, (0.5, 0.4, 0.3), (36, 38, 74))),
    "resnet34-a": ("torchvision:resnet34", 33, _residual(RESNET34, (0.3, 0.3, 0.3, 0.0), SKIPPED34)),
    "resnet34-b": ("torchvision:resnet34", 33, _residual(RESNET34, (0.5, 0.6, 0.4, 0.0), SKIPPED34)),
}
