"""A cell without normalisation, whose states stay between -1 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from deqopt.nn.multiscale import Branches, resampling


class BoundedCell(nn.Module):
    """``f(z, u)`` with ``f_i = tanh(sum_j W_ij z_j + u_i)`` for branch i: W_ii is a 3x3 convolution, the others resample.

    The least that an evaluation can cost: a convolution and its transpose. What is differentiated twice, as every
    gradient through a joint solve is, has no normalisation to pass, whose second derivative is a dozen operations on a
    CPU; and z = 0 is a point like all others. The size of u decides how far from linear f is, so hand over a u of unit
    variance.

    Args:
        channels: of the branches, finest first; each has half the resolution of the one before.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(
            nn.ModuleList(
                weight_norm(nn.Conv2d(channels[i], channels[i], 3, padding=1, bias=False))
                if i == j
                else resampling(channels[j], channels[i], j, i)
                for j in range(len(channels))
            )
            for i in range(len(channels))
        )

    def forward(self, z: Branches, u: Branches) -> Branches:
        """``z`` and ``u`` are tuples of (B, channels, height, width), one a branch, and so is the result."""
        images = []
        for maps, total in zip(self.maps, u, strict=True):
            for one, part in zip(cast(nn.ModuleList, maps), z, strict=True):
                total = total + one(part)
            images.append(torch.tanh(total))
        return tuple(images)
