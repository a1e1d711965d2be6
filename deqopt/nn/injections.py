"""Injections into a multiscale cell: they convert latents and images to one feature map per branch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deqopt.nn.multiscale import Branches

GAIN = 4.0
"""Factor by which the initial weights of :class:`ImageInjection` are larger than PyTorch's. The state of an untrained
cell then depends more on the image than on itself, and a plain update shrinks the residual to 0.3 of it, not 0.85."""


class LatentInjection(nn.Module):
    """Converts a latent (B, latent) to one feature map per branch, by learned projections.

    Example:
        >>> import torch
        >>> from deqopt.nn import LatentInjection, branch_shapes
        >>> [part.shape for part in LatentInjection(32, branch_shapes([8, 16], resolution=16))(torch.zeros(2, 32))]
        [torch.Size([2, 8, 16, 16]), torch.Size([2, 16, 8, 8])]
    """

    def __init__(self, latent: int, shapes: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        self.shapes = list(shapes)
        self.projections = nn.ModuleList(nn.Linear(latent, c * h * w) for c, h, w in shapes)

    def forward(self, x: Tensor) -> Branches:
        return tuple(
            projection(x).unflatten(1, shape) for projection, shape in zip(self.projections, self.shapes, strict=True)
        )


class ImageInjection(nn.Module):
    """Converts images, (B, channels, H, W) with values of about -1 to 1, to one feature map per branch, by strided
    convolutions.

    Args:
        image_channels: colour channels of the images.
        widths: channels of the branches, finest first; each branch has half the resolution of the one before.
        stride: height and width of the images divided by those of the finest branch.

    Example:
        >>> import torch
        >>> from deqopt.nn import ImageInjection
        >>> [part.shape for part in ImageInjection(3, [8, 16], stride=2)(torch.zeros(2, 3, 32, 32))]
        [torch.Size([2, 8, 16, 16]), torch.Size([2, 16, 8, 8])]
    """

    def __init__(self, image_channels: int, widths: Sequence[int], stride: int) -> None:
        super().__init__()
        strides = [stride * 2**i for i in range(len(widths))]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(image_channels, width, step + 2, stride=step, padding=1)
            for width, step in zip(widths, strides, strict=True)
        )
        with torch.no_grad():
            for weight in self.parameters():
                weight.mul_(GAIN)

    def forward(self, image: Tensor) -> Branches:
        return tuple(convolution(image) for convolution in self.convolutions)
