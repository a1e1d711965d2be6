"""Structural similarity as the field computes it, so that figures can be set beside those of papers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from deqopt.errors import ProblemError

WINDOW, SIGMA = 11, 1.5
"""Side of the window, and standard deviation of the Gaussian in it, in pixels."""
K1, K2 = 0.01, 0.03


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of every image to its target, (B,) in [-1, 1]; 1 where they are equal.

    ``(2 m n + c1) (2 cov + c2) / ((m^2 + n^2 + c1) (var + var' + c2))`` of pixels in [0, 1], where means m and n,
    variances and covariance are those under a Gaussian window of 11x11 pixels and standard deviation 1.5,
    ``c1 = 0.01^2`` and ``c2 = 0.03^2``; the mean over the places where the whole window lies inside the image, and
    over channels. It is computed in float64, and what scikit-image's ``structural_similarity`` returns with
    ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1``.

    Of images below 11x11 the window is the largest odd square that fits: a value, but none to compare with others.

    Args:
        images, targets: (B, channels, H, W) in [0, 1]; what lies outside is cut.

    Raises:
        ProblemError: other shapes.
    """
    if images.shape != targets.shape or images.dim() != 4 or not images.shape[1:].numel():
        raise ProblemError(
            "ssim compares images (B, channels, H, W) with targets of the same shape, "
            f"got {tuple(images.shape)} and {tuple(targets.shape)}"
        )
    a, b = (part.double().clamp(0, 1) for part in (images, targets))
    # Moments about 1/2 cancel less.
    u, v = a - 0.5, b - 0.5
    m, n, uu, vv, uv = (_windowed(part) for part in (u, v, u * u, v * v, u * v))
    variances, covariance = uu - m * m + vv - n * n, uv - m * n
    m, n, c1, c2 = m + 0.5, n + 0.5, K1**2, K2**2
    at = (2 * m * n + c1) * (2 * covariance + c2) / ((m * m + n * n + c1) * (variances + c2))
    return at.flatten(1).mean(1).to(torch.promote_types(images.dtype, torch.float32))


def _windowed(images: Tensor) -> Tensor:
    """Weighted means under the window wherever it fits, (B, channels, H - window + 1, W - window + 1)."""
    height, width = images.shape[-2:]
    side = min(WINDOW, height - 1 + height % 2, width - 1 + width % 2)
    offsets = torch.arange(side, dtype=images.dtype, device=images.device) - side // 2
    weights = (-0.5 * (offsets / SIGMA) ** 2).exp()
    weights = weights / weights.sum()
    rows = F.conv2d(images.reshape(-1, 1, height, width), weights.reshape(1, 1, side, 1))
    means = F.conv2d(rows, weights.reshape(1, 1, 1, side))
    return means.reshape(*images.shape[:2], *means.shape[-2:])


class StructuralSimilarity(Metric):
    """The mean of :func:`ssim` over all images; NaN of none."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name in ("total", "count"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, images: Tensor, targets: Tensor) -> None:
        self.total = self.total + ssim(images.detach(), targets).double().sum()
        self.count = self.count + len(images)

    def compute(self) -> Tensor:
        return (self.total / self.count).float()
