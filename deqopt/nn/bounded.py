"""A cell without normalisation, whose states stay between -1 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from deqopt.nn.multiscale import Branches, resampling


class BoundedCell(nn.Module):
    """``f(z, u)``: branch i becomes ``tanh(sum_j W_ij z_j + u_i)``. W_ii is a 3x3 convolution, all other W_ij resample.

    An evaluation costs little more than a convolution and its transpose. The second derivatives, which every gradient
    through a joint solve needs, are cheap, while those of a normalisation take a dozen operations on a CPU. There is no
    singularity at z = 0. The size of u determines how nonlinear f is: use a u of unit variance.

    Args:
        channels: channels of the branches, finest first; each branch has half the resolution of the one before.

    Example:
        >>> import torch
        >>> from deqopt.nn import BoundedCell
        >>> z = (torch.zeros(2, 8, 14, 14), torch.zeros(2, 16, 7, 7))
        >>> [part.shape[1:] for part in BoundedCell([8, 16])(z, z)]
        [torch.Size([8, 14, 14]), torch.Size([16, 7, 7])]
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
        """``z``, ``u`` and the result are tuples of tensors (B, channels, height, width), one per branch."""
        images = []
        for maps, total in zip(self.maps, u, strict=True):
            for one, part in zip(cast(nn.ModuleList, maps), z, strict=True):
                total = total + one(part)
            images.append(torch.tanh(total))
        return tuple(images)
