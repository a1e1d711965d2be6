"""How close images come to their targets, image by image, as scores that methods are compared by."""

from __future__ import annotations

import torch
from torch import Tensor

from deqopt.compare import Measure
from deqopt.ssim import ssim

IMAGE_MEASURES = (
    Measure("psnr", "PSNR in dB"),
    Measure("ssim", "SSIM", digits=3),
    Measure("seconds", "ms/image", factor=1000, digits=1, median=True),
)
ROUNDING = (1 / 255) ** 2 / 12
"""The mean squared error of rounding an image in [0, 1] to 8 bits."""


def psnr(images: Tensor, targets: Tensor, where: Tensor | None = None) -> Tensor:
    """``10 log10(1 / mse)`` of every image, (B,), in dB.

    An error below that of rounding to 8 bits counts as it, 58.9 dB, so that no perfect image makes a mean infinite.

    Args:
        images, targets: (B, channels, H, W) in [0, 1].
        where: the pixels that count, bools (B, 1 or channels, H, W), by default all; NaN for an image without any.
    """
    squares = (images.float() - targets.float()).square()
    weights = torch.ones_like(squares) if where is None else where.expand_as(squares).float()
    mse = (weights * squares).flatten(1).sum(1) / weights.flatten(1).sum(1)
    return -10 * torch.log10(mse.clamp_min(ROUNDING))


def image_scores(images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """``psnr`` and ``ssim``, (B,), of images (B, channels, H, W), cut to [0, 1], to targets in [0, 1]."""
    images = images.clamp(0, 1)
    return {"psnr": psnr(images, targets), "ssim": ssim(images, targets)}
