"""The classifier: logits of an image through the equilibrium of a multiscale cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deqopt.errors import ProblemError
from deqopt.nn import ImageInjection, MultiscaleCell, branch_shapes, group_norm
from deqopt.ranges import at_least

Branches = tuple[Tensor, ...]

POOLED = 4
"""Height and width to which every larger branch is pooled before the linear layer."""


class Classifier(nn.Module):
    """``logits = head(z)`` with ``z = cell(z, injection(image))``, for images in [0, 1].

    Normalisation is part of the model: the injection gets ``2 image - 1``. Nothing couples the samples of a batch.

    Args:
        classes: number of classes.
        image_channels, size: colour channels and size of the images.
        widths: channels of the cell's branches, finest first; each branch has half the resolution of the one before.
        resolution: height and width of the finest branch; must divide ``size``.
        unroll: None for the equilibrium; otherwise the number of applications of the same cell, starting from zero,
            which gives a weight-tied feed-forward network of the same size. :meth:`f` is then constant in z.
    """

    def __init__(
        self,
        classes: int,
        image_channels: int,
        size: int,
        widths: Sequence[int],
        resolution: int,
        unroll: int | None = None,
    ) -> None:
        super().__init__()
        at_least(2, classes=classes)
        if unroll is not None:
            at_least(1, unroll=unroll)
        if size < resolution or size % resolution:
            raise ProblemError(f"the image size must be a multiple of the resolution {resolution}, got {size}")
        self.shapes, self.unroll = branch_shapes(widths, resolution), unroll
        self.cell = MultiscaleCell(widths)
        self.injection = ImageInjection(image_channels, widths, size // resolution)
        self.norms = nn.ModuleList(group_norm(width, 8) for width in widths)
        self.pooled = [min(POOLED, height) for _, height, _ in self.shapes]
        features = sum(width * side**2 for width, side in zip(widths, self.pooled, strict=True))
        self.linear = nn.Linear(features, classes)

    def f(self, z: Branches, image: Tensor) -> Branches:
        """One application of the cell, or with ``unroll`` all of them from zero; z is a tuple of (B, width, h, w)."""
        injected = self.injection(2 * image - 1)
        if self.unroll is None:
            return self.cell(z, injected)
        z = self.zeros(image)
        for _ in range(self.unroll):
            z = self.cell(z, injected)
        return z

    def logits(self, z: Branches) -> Tensor:
        """(B, classes) the logits of a state."""
        pooled = [
            F.adaptive_avg_pool2d(F.silu(norm(part)), side).flatten(1)
            for norm, part, side in zip(self.norms, z, self.pooled, strict=True)
        ]
        return self.linear(torch.cat(pooled, dim=1))

    def start(self, image: Tensor) -> Branches:
        """The start of a solve: ``f(0, image)``, detached; zeros if f is constant in z.

        At 0 itself, normalisation is singular: multipliers are 100,000 times too large there, and need ten evaluations
        to decay.
        """
        zeros = self.zeros(image)
        return zeros if self.unroll is not None else tuple(part.detach() for part in self.f(zeros, image))

    def zeros(self, image: Tensor) -> Branches:
        """Zeros of the state's shapes for a batch of images."""
        return tuple(image.new_zeros(image.shape[0], *shape) for shape in self.shapes)
