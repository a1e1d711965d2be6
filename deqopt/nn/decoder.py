"""The decoder: an image from a latent, through the equilibrium of a multiscale cell."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from deqopt.nn.heads import ImageHead
from deqopt.nn.injections import LatentInjection
from deqopt.nn.multiscale import Branches, MultiscaleCell, branch_shapes


class Decoder(nn.Module):
    """``G(x) = head(z)`` with ``z = cell(z, injection(x))``.

    Args:
        latent: length of x.
        widths: channels of the cell's branches, finest first; each branch has half the resolution of the one before.
        resolution: height and width of the finest branch.
        image_channels, size: colour channels and size of the image; ``size`` must be a multiple of ``resolution``.

    Example:
        >>> import torch
        >>> from deqopt.nn import Decoder
        >>> decoder = Decoder(latent=32, widths=[8, 16], resolution=8, image_channels=3, size=32)
        >>> x = torch.zeros(2, 32)
        >>> decoder.head(decoder.f(decoder.start(x), x)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(self, latent: int, widths: Sequence[int], resolution: int, image_channels: int, size: int) -> None:
        super().__init__()
        self.shapes = branch_shapes(widths, resolution)
        self.cell = MultiscaleCell(widths)
        self.injection = LatentInjection(latent, self.shapes)
        self.head = ImageHead(widths, resolution, image_channels, size)

    def f(self, z: Branches, x: Tensor) -> Branches:
        """One application of the cell; z is a tuple of (B, width, h, w)."""
        return self.cell(z, self.injection(x))

    def start(self, x: Tensor) -> Branches:
        """Zeros of the state's shapes for a batch of latents (B, latent)."""
        return tuple(x.new_zeros(x.shape[0], *shape) for shape in self.shapes)
