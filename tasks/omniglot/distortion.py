"""Random distortions of the classes and images of training episodes, which give new characters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from deqopt.errors import DataError

TURN, STRETCH, SLANT, MOVE = math.radians(10), 0.1, 0.15, 0.1
"""The largest distortions at a strength of 1: an angle, shares of the size, a shear, a share of half the side."""
STRONGEST = 5.0


@dataclass(frozen=True)
class Distortion:
    """Rotates, stretches, slants and shifts images by random affine maps.

    All images of a class of an episode get the same map, which also mirrors half of the classes, so that it creates a
    new class. In addition, every image gets its own map, which creates a new image. Uncovered pixels are white.

    Args:
        classes: strength of the maps of classes, 0 for none; with 1 they rotate by up to 10 degrees, stretch by up to a
            tenth and slant by up to 0.15.
        images: strength of the maps of images, which also shift by up to a twentieth of the side.

    Raises:
        DataError: a strength below 0 or above 5.
    """

    classes: float = 0.0
    images: float = 0.0

    def __post_init__(self) -> None:
        for name, strength in vars(self).items():
            if not 0 <= strength <= STRONGEST:
                raise DataError(f"distort_{name} is {strength:g}: it should be 0 (do not distort) to {STRONGEST:g}")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The distorted images, (ways, n, channels, size, size) in [0, 1]: n images of each class."""
        if not self.classes and not self.images:
            return images
        ways, count = images.shape[:2]
        of_class, of_image = (
            affine_maps(number, strength, generator)
            for number, strength in ((ways, self.classes), (ways * count, self.images))
        )
        if self.classes:
            mirrored = torch.rand(ways, generator=generator) < 0.5
            of_class[:, :2, 0] *= torch.where(mirrored, -1.0, 1.0)[:, None]
            of_class[:, :2, 2] = 0
        maps = of_class.repeat_interleave(count, dim=0) @ of_image
        ink = 1 - images.flatten(0, 1)
        grid = F.affine_grid(maps[:, :2], list(ink.shape), align_corners=False)
        distorted = F.grid_sample(ink, grid, align_corners=False)
        return (1 - distorted).clamp(0, 1).unflatten(0, (ways, count))


def affine_maps(count: int, strength: float, generator: torch.Generator) -> Tensor:
    """(count, 3, 3) maps of the plane in homogeneous coordinates, in which an image extends from -1 to 1."""
    turn, size, ratio, slant, right, down = strength * (2 * torch.rand(6, count, generator=generator) - 1)
    angle, size, ratio = TURN * turn, 1 + STRETCH * size, 1 + STRETCH * ratio
    zero, one = torch.zeros(count), torch.ones(count)
    rotation = [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero, zero, zero, one]
    stretch = [size * ratio, SLANT * slant, MOVE * right, zero, size / ratio, MOVE * down, zero, zero, one]
    return torch.stack(rotation, 1).view(-1, 3, 3) @ torch.stack(stretch, 1).view(-1, 3, 3)
