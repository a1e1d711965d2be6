"""Heads that convert the state of a multiscale cell to images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from deqopt.errors import ProblemError
from deqopt.nn.multiscale import Branches, group_norm


class PixelHead(nn.Module):
    """Converts the branches to pixels: resamples them to the finest branch, mixes them, and applies a sub-pixel
    convolution.

    Args:
        channels: channels of the branches, finest first.
        pixel_channels: channels of the result.
        factor: height and width of the result divided by those of the finest branch.

    Example:
        >>> import torch
        >>> from deqopt.nn import PixelHead
        >>> PixelHead([8], pixel_channels=3, factor=2)((torch.zeros(2, 8, 16, 16),)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(self, channels: Sequence[int], pixel_channels: int, factor: int, groups: int = 8) -> None:
        super().__init__()
        width = max(channels[0], pixel_channels * factor**2)
        self.mix = weight_norm(nn.Conv2d(sum(channels), width, 1))
        self.norm = group_norm(width, groups)
        self.paint = nn.Conv2d(width, pixel_channels * factor**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(factor)

    def forward(self, z: Branches) -> Tensor:
        """(B, pixel_channels, factor h, factor w) of branches (B, channels, h, w), finest first."""
        h = torch.cat([z[0], *(_upsample(part, z[0]) for part in z[1:])], dim=1)
        painted: Tensor = self.shuffle(self.paint(F.silu(self.norm(self.mix(h)))))
        return painted


class ImageHead(PixelHead):
    """Converts the branches to an image in (-1, 1): a :class:`PixelHead` and tanh.

    Args:
        channels: channels of the branches, finest first.
        resolution: height and width of the finest branch.
        image_channels: colour channels of the image.
        size: height and width of the image, a multiple of ``resolution``.

    Raises:
        ProblemError: ``size`` is not a multiple of ``resolution``.

    Example:
        >>> import torch
        >>> from deqopt.nn import ImageHead
        >>> ImageHead([8], resolution=16, image_channels=3, size=32)(( torch.zeros(2, 8, 16, 16),)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self, channels: Sequence[int], resolution: int, image_channels: int, size: int, groups: int = 8
    ) -> None:
        if size < resolution or size % resolution:
            raise ProblemError(f"the image size must be a multiple of the resolution {resolution}, got {size}")
        super().__init__(channels, image_channels, size // resolution, groups)

    def forward(self, z: Branches) -> Tensor:
        """(B, image_channels, size, size) in (-1, 1) of branches (B, channels, height, width)."""
        return torch.tanh(super().forward(z))


def _upsample(h: Tensor, finest: Tensor) -> Tensor:
    return F.interpolate(h, size=finest.shape[-2:], mode="bilinear", align_corners=False)
