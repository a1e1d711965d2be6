"""The perturbations that an attacker may use."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deqopt.errors import NonFiniteError, ProblemError
from deqopt.feasible import Box, FeasibleSet, L2BallInBox
from deqopt.loop_settings import Norm
from deqopt.ranges import not_negative


@dataclass(frozen=True)
class Threat:
    """The attacker may add any x with ``|x| <= radius`` to an image, as long as its pixels stay in [0, 1].

    Args:
        norm: norm of the perturbation, L2 or LINF.
        radius: largest norm, not negative, in pixel values from 0 to 1.

    Raises:
        ProblemError: a negative radius.
    """

    norm: Norm
    radius: float

    def __post_init__(self) -> None:
        not_negative(radius=self.radius)

    def __str__(self) -> str:
        return f"{'L2' if self.norm is Norm.L2 else 'L-infinity'} radius {self.radius:g}"

    def at(self, radius: float) -> Threat:
        """The same norm with another radius."""
        return replace(self, radius=radius)

    def feasible(self, images: Tensor) -> FeasibleSet:
        """The perturbations of ``images`` that the attacker may choose."""
        if self.norm is Norm.L2:
            return L2BallInBox(self.radius, -images, 1 - images)
        return Box((-images).clamp_min(-self.radius), (1 - images).clamp_max(self.radius))

    def reach(self, images: Tensor) -> float:
        """The Euclidean length of the longest perturbation of one of these images: ``radius``, ``radius sqrt(n)``."""
        return self.radius * (1.0 if self.norm is Norm.L2 else images[0].numel() ** 0.5)

    def checked(self, images: Tensor, found: Tensor, name: str) -> Tensor:
        """The images ``found`` by an attack, with rounding errors outside the set removed.

        Raises:
            NonFiniteError: ``found`` contains values that are not finite.
            ProblemError: ``found`` is further outside the set than rounding explains.
        """
        lost = int((~found.flatten(1).isfinite().all(1)).sum())
        if lost:
            raise NonFiniteError(f"{name} returned NaN or infinite pixels for {lost} of {len(found)} images")
        x = found - images
        rounding = 4 * torch.finfo(torch.float32).eps * images[0].numel() ** 0.5
        longest = float(self.norm.of(x.flatten(1)).max())
        if longest > self.radius * (1 + TOLERANCE) + rounding:
            raise ProblemError(f"{name} left the set it was given, {self}: a perturbation is {longest:g} long")
        low, high = float(found.min()), float(found.max())
        if low < -TOLERANCE or high > 1 + TOLERANCE:
            raise ProblemError(f"{name} left the valid pixels, 0 to 1: its images go from {low:g} to {high:g}")
        return (images + self.feasible(images).project(x)).clamp(0, 1)


TOLERANCE = 1e-4
"""Share of the radius, and of the range of pixels, by which a perturbation may be outside due to rounding."""
