"""Whole batches of images at once: channels, size, statistics, normalisation and augmentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prunecli.data.base import Augment, Fit
from prunecli.errors import UsageError

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the same that Pillow uses to turn colours into grey
CHUNK = 1024  # images resized at a time, which bounds the memory for their float copies


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Images [N, C, H, W] with `channels` channels: grey is repeated, colour becomes its luma."""
    have = images.shape[1]
    if have == channels:
        return images
    if have == 1:
        return images.expand(-1, channels, -1, -1).contiguous()
    if have == 3 and channels == 1:
        return torch.cat([_luma(chunk) for chunk in torch.split(images, CHUNK)])
    raise UsageError(
        f"images of {have} channels cannot become images of {channels}",
        "choose a network, or an image size, with as many channels as the images have",
    )


def _luma(images: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)
    return _like(images, (images.float() * weights).sum(1, keepdim=True))


def resized(images: Tensor, fit: Fit) -> Tensor:
    """Images [N, C, H, W] as [N, C, *fit.size]."""
    height, width = images.shape[2:]
    if (height, width) == fit.size:
        return images
    down, right = fit.size[0] - height, fit.size[1] - width
    if 0 <= down <= 2 * fit.border and 0 <= right <= 2 * fit.border:
        return F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))
    return torch.cat([_interpolated(chunk, fit.size) for chunk in torch.split(images, CHUNK)])


def _interpolated(images: Tensor, size: tuple[int, int]) -> Tensor:
    return _like(images, F.interpolate(images.float(), size, mode="bilinear", antialias=True))


def _like(images: Tensor, values: Tensor) -> Tensor:
    """Float `values` in the type of `images`, rounded where that is uint8."""
    return values.round_().clamp_(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else values


def statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation a channel of x / 255 over uint8 images [N, C, H, W], to six decimals.

    They are computed from a histogram, so the result does not depend on the order of additions. A constant channel
    gets a standard deviation of 1.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = (share * values).sum()
        variance = (share * (values - mean).square()).sum()
        means.append(round(mean.item(), 6))
        stds.append(round(variance.sqrt().item(), 6) or 1.0)
    return means, stds


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The a and b, float32 [1, C, 1, 1] each, of (x / 255 - mean) / std = a x + b."""
    deviation = torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1)
    middle = torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1)
    return (1 / (255 * deviation)).float(), (-middle / deviation).float()


def augmented(images: Tensor, augment: Augment, numbers: torch.Generator) -> Tensor:
    """Images [N, C, H, W], each shifted and mirrored with numbers of its own, in one gather for the whole batch."""
    count, channels, height, width = images.shape
    pad = augment.pad
    shifts = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=numbers).to(images.device)
    mirrored = torch.randint(0, 2, (count, 1), generator=numbers).to(images.device).bool()
    rows = shifts[0] + torch.arange(height, device=images.device)  # [N, H], positions in the padded image
    columns = shifts[1] + torch.arange(width, device=images.device)  # [N, W]
    if augment.flip:
        columns = torch.where(mirrored, columns.flip(1), columns)
    positions = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]  # [N, H, W], in the flattened padded image
    padded = F.pad(images, (pad, pad, pad, pad)).flatten(2)
    taken = padded.gather(2, positions.flatten(1)[:, None, :].expand(-1, channels, -1))
    return taken.view(count, channels, height, width)
