"""The network of an episode: features of images at the equilibrium of a cell that depends on a context."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deqopt.adjoints.fixed_point import implicit_fixed_point
from deqopt.errors import ProblemError
from deqopt.fixed_point import Anderson, Damped, FixedPointSolver
from deqopt.nn import BoundedCell, ImageInjection, branch_shapes, group_norm
from deqopt.nn.multiscale import Branches
from deqopt.ranges import at_least
from deqopt.state import State, tensors_of

POOLED = 7
"""Height and width to which every larger branch is pooled before the linear layer."""
GAIN = 0.3
"""The largest scaling and shift of a channel by a context of length 1."""
REACH = 4.0
"""Length of a class vector relative to a context with the same price."""


class Solvers(NamedTuple):
    """Solvers for equilibria with a given context, and for the linear systems of their gradients."""

    forward: FixedPointSolver
    backward: FixedPointSolver


IN_TRAINING = Solvers(Damped(max_nfe=20, tol=1e-2), Damped(max_nfe=20, tol=1e-1))
"""Plain iteration: for small states, the memory of Anderson mixing costs as much as its saved evaluations."""
EXACT = Solvers(Anderson(max_nfe=100, tol=1e-5), Anderson(max_nfe=100, tol=1e-5))


class EpisodeNetwork(nn.Module):
    """``z = f(z, u, c)`` with ``f = cell(z, (1 + gamma(c)) u + beta(c))``, and features phi of z.

    u is the injection of an image into the cell; it does not depend on the unknowns and is computed once. The context c
    of an episode scales and shifts u channel by channel (FiLM: Perez et al. 2018; as the context of an episode:
    Zintgraf et al. 2019). With ``c = 0``, u is unchanged. Only c couples the images of an episode.

    Images are (B, S, channels, size, size) in [0, 1], with S images for each of B episodes. States are
    (B, S, width, h, w) for each branch.

    Args:
        image_channels, size: colour channels and size of the images.
        widths: channels of the cell's branches, finest first; each branch has half the resolution of the one before.
        resolution: height and width of the finest branch; ``size`` must be 2, 4, 8 ... times as large.
        context: width of c.
        features: width of phi.

    Raises:
        ProblemError: widths, resolution, context or features are invalid.
    """

    def __init__(
        self, image_channels: int, size: int, widths: Sequence[int], resolution: int, context: int, features: int
    ) -> None:
        super().__init__()
        at_least(1, context=context, features=features)
        shapes = branch_shapes(widths, resolution)
        self.stem = _stem(image_channels, widths[0], size, resolution)
        self.injection = ImageInjection(widths[0], widths, stride=1)
        self.norms = nn.ModuleList(group_norm(width, 8) for width in widths)
        self.film = nn.ModuleList(_Film(context, width) for width in widths)
        self.cell = BoundedCell(widths)
        self.pooled = [min(POOLED, height) for _, height, _ in shapes]
        total = sum(width * side**2 for width, side in zip(widths, self.pooled, strict=True))
        self.linear = nn.Linear(total, features)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.context, self.width = context, features

    def injected(self, images: Tensor) -> Branches:
        """u for images. The input of the network is ``1 - image``, so that white paper is 0."""
        u = self.injection(self.stem(1 - images.flatten(0, 1)))
        return tuple(norm(part).unflatten(0, images.shape[:2]) for norm, part in zip(self.norms, u, strict=True))

    def f(self, z: Branches, c: Tensor, u: Branches) -> Branches:
        """One application of the cell; c is (B, context)."""
        injected = []
        for film, part in zip(self.film, u, strict=True):
            gamma, beta = film(c)
            injected.append(((1 + gamma) * part + beta).flatten(0, 1))
        found = self.cell(tuple(part.flatten(0, 1) for part in z), tuple(injected))
        return tuple(part.unflatten(0, u[0].shape[:2]) for part in found)

    def start(self, c: Tensor, u: Branches) -> Branches:
        """The start of a solve: ``f(0, u, c)``, detached."""
        return tuple(part.detach() for part in self.f(tuple(torch.zeros_like(part) for part in u), c, u))

    def features(self, z: Branches) -> Tensor:
        """phi, (B, S, features), with mean 0 and variance 1: ``|phi|^2 = features``."""
        pooled = [
            h if h.shape[-1] == side else F.adaptive_avg_pool2d(h, side)
            for h, side in zip((part.flatten(0, 1) for part in z), self.pooled, strict=True)
        ]
        phi = self.linear(torch.cat([part.flatten(1) for part in pooled], dim=1))
        return F.layer_norm(phi, (self.width,)).unflatten(0, z[0].shape[:2])

    def logits(self, phi: Tensor, w: Tensor) -> Tensor:
        """``sqrt(ways / features) <phi, w_k>``, (B, S, ways).

        With K support images of each of N classes, the curvature of the mean cross-entropy in w is ``sum_s H_s (x)
        phi_s phi_s^T / (K |phi|^2)``, where H_s is the covariance of the class of s, at most 1/N at ``w = 0``. So the
        curvature does not depend on K, nor on the weights, because no learned factor scales it. One step size of the
        solver works for all.

        Args:
            phi: (B, S, features).
            w: (B, ways, features), one vector per class.
        """
        return phi @ w.mT * math.sqrt(w.shape[1] / self.width)

    def price(self, c: Tensor, w: Tensor) -> Tensor:
        """``|c|^2 + |w / 4|^2``, (B,), of a context."""
        return c.square().sum(1) + (w / REACH).square().sum((1, 2))

    def solved(self, images: Tensor, c: Tensor) -> Branches:
        """The solution of ``z = f(z, u, c)`` for every image, differentiable in theta and c by the implicit function
        theorem."""
        sets = images.shape[:2]
        u = tuple(part.flatten(0, 1)[:, None] for part in self.injected(images))
        c = c.repeat_interleave(sets[1], dim=0)

        def f(z: State, known: tuple[Tensor, ...]) -> State:
            return self.f(tensors_of(z), known[0], known[1:])

        solvers = IN_TRAINING if self.training else EXACT
        z = solvers.forward.solve(f, self.start(c, u), tuple(part.detach() for part in (c, *u))).z
        if torch.is_grad_enabled():
            z, _ = implicit_fixed_point(lambda z: self.f(tensors_of(z), c, u), z, solvers.backward)
        return tuple(part.squeeze(1).unflatten(0, sets) for part in tensors_of(z))

    def embed(self, images: Tensor) -> Tensor:
        """phi at the equilibrium without a context, (B, S, features), differentiable."""
        return self.features(self.solved(images, images.new_zeros(len(images), self.context)))


class _Film(nn.Module):
    """``gamma(c)`` and ``beta(c)``, (B, 1, width, 1, 1) each: linear, with rows of fixed length.

    If the rows could grow, training by the implicit gradient would make the effect of c stronger and stronger, until
    joint solves no longer converge.
    """

    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2 * width, context))

    def forward(self, c: Tensor) -> tuple[Tensor, Tensor]:
        gamma, beta = F.linear(c, GAIN * F.normalize(self.weight, dim=1))[:, None, :, None, None].chunk(2, dim=2)
        return gamma, beta


def _stem(image_channels: int, width: int, size: int, resolution: int) -> nn.Sequential:
    """The network from images to feature maps (B, width, resolution, resolution), with convolutions that halve the
    size.

    Each convolution has twice as many channels as the one before, because its output has a quarter of the pixels.
    """
    halvings = (size // resolution).bit_length() - 1
    if halvings < 1 or size != resolution << halvings:
        raise ProblemError(f"the image size must be 2, 4, 8 ... times the resolution {resolution}, got {size}")
    layers: list[nn.Module] = []
    channels = image_channels
    for left in reversed(range(halvings)):
        wider = max(width >> left, 1)
        layers += [nn.Conv2d(channels, wider, 3, stride=2, padding=1), group_norm(wider, 8), nn.SiLU()]
        channels = wider
    return nn.Sequential(*layers)
