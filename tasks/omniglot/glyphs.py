"""Glyphs: artificial characters that are drawn by the program and need no data.

A class consists of a few strokes, which are Bezier curves with random points; half of the strokes start where the
previous stroke ended. For each image, a simulated hand moves every point a little, slants, stretches, rotates and
shifts the whole character, and chooses a pen width. A stroke p leaves the ink
``2 integral exp(-|q - p|^2 / (2 w^2)) |dp| / (sqrt(2 pi) w)``, at most 1, at a pixel q. For a straight stroke, this is
twice a Gaussian of the distance.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deqopt.data import Splits
from deqopt.errors import DataError

from .sources import ClassSource

STROKES, POINTS, STEPS = 4, 3, 32
"""Largest number of strokes per glyph, number of points that define a stroke, and of points where it is evaluated."""
IMAGES = 20
"""Images per class, the same number as in Omniglot."""
TRAIN, VAL, TEST = 1000, 100, 200
"""Classes of the splits."""
SIZE = 0.75
"""The longer side of a glyph before the random changes of an image, in units of the side of the image."""
MISS, TURN, STRETCH, SLANT, MOVE = 0.1, 0.2, 0.2, 0.3, 0.07
"""The largest random changes of an image: of a point, the angle, the scales, the shear, the place."""
PEN = (0.014, 0.022)
"""The smallest and the largest w, in units of the side of the image."""


class Glyphs(ClassSource):
    """Characters of random strokes, ink 0 on paper 1, drawn on access, with 20 images per class.

    Class c depends only on ``(seed, c)``, and its image i only on ``(seed, c, i)``, on every machine. The splits do not
    depend on their seed: train has the classes 0 to 999, val 1000 to 1099, test 1100 to 1299.

    Args:
        size: height and width of the images, 28 by default.
        channels: 1 (default), or 3 equal channels.
        seed: 0 (default) to 2**64 - 1; different seeds give different characters.

    Raises:
        DataError: a seed out of range, a size below 1 or another number of channels.
    """

    def __init__(self, size: int = 28, channels: int = 1, *, seed: int = 0) -> None:
        super().__init__("the set of glyphs", size=size, channels=channels)
        if not 0 <= seed < 2**64:
            raise DataError(f"the seed of the glyphs is {seed}: it should be 0 to {2**64 - 1}")
        self._seed = seed

    def __len__(self) -> int:
        return TRAIN + VAL + TEST

    def name(self, index: int) -> str:
        return f"glyph_{index:04d}"

    def count(self, c: int) -> int:
        return IMAGES

    def images(self, classes: Tensor, numbers: Tensor) -> Tensor:
        c, i = classes.numpy(), numbers.numpy()
        shape = torch.from_numpy(uniform(1 + STROKES + STROKES * POINTS * 2, self._seed, c))
        hand = torch.from_numpy(uniform(7 + STROKES * POINTS * 2, self._seed, c, i + 1)) * 2 - 1
        drawn = torch.arange(STROKES) <= shape[:, :1] * STROKES
        joined = shape[:, 1 : 1 + STROKES] < 0.5
        intended = _framed(_joined(shape[:, 1 + STROKES :], joined), drawn)
        points = _placed(intended + MISS * _joined(hand[:, 7:], joined), hand)
        width = PEN[0] + (PEN[1] - PEN[0]) * (hand[:, 6] + 1) / 2
        ink = ink_of((_parabolas() @ points).float(), drawn, width.float(), self.size)
        return (((1 - ink) * 255).round() / 255)[:, None].repeat(1, self.channels, 1, 1)

    def splits(self, seed: int) -> Splits:
        """The same splits for every seed."""
        classes = list(range(len(self)))
        return Splits(classes[:TRAIN], classes[TRAIN : TRAIN + VAL], classes[TRAIN + VAL :])


def uniform(count: int, seed: int, *counters: NDArray[np.int64]) -> NDArray[np.float64]:
    """Numbers in [0, 1), (n, count), that depend only on the seed and the counters of their row, (n,) each.

    Computed by the mixing function of SplitMix64 (Steele et al. 2014), which needs no state, so that all rows are
    computed at once.
    """
    state = np.full(counters[0].shape, seed, np.uint64)
    for counter in counters:
        state = mixed(mixed(state) + counter.astype(np.uint64))
    numbers = mixed(mixed(state)[:, None] + np.arange(count).astype(np.uint64))
    return (numbers >> np.uint64(11)).astype(np.float64) / 2.0**53


def mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The first number of SplitMix64 with these seeds."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _joined(points: Tensor, joined: Tensor) -> Tensor:
    """Points (n, STROKES, POINTS, 2) of numbers in a row; strokes that are joined, (n, STROKES), start at an
    end."""
    points = points.reshape(-1, STROKES, POINTS, 2).clone()
    for stroke in range(1, STROKES):
        points[:, stroke, 0] = torch.where(joined[:, stroke, None], points[:, stroke - 1, -1], points[:, stroke, 0])
    return points


def _framed(points: Tensor, drawn: Tensor) -> Tensor:
    """The points centred at 0 and scaled, so that the longer side of the drawn strokes is 1."""
    hidden = ~drawn[:, :, None, None]
    low = points.masked_fill(hidden, math.inf).amin((1, 2), keepdim=True)
    high = points.masked_fill(hidden, -math.inf).amax((1, 2), keepdim=True)
    return (points - (low + high) / 2) / (high - low).amax(3, keepdim=True)


def _placed(points: Tensor, hand: Tensor) -> Tensor:
    """Points (n, ..., 2) around 0, rotated, slanted, stretched and shifted into the unit square by ``hand``, random
    numbers in [-1, 1)."""
    angle, slant = TURN * hand[:, 0], SLANT * hand[:, 1]
    wide, high = (SIZE * (1 + STRETCH * hand[:, k]) for k in (2, 3))
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    shear = torch.stack([wide, slant * high, torch.zeros_like(wide), high], 1).view(-1, 2, 2)
    return torch.einsum("nij,njk,nspk->nspi", turn, shear, points) + 0.5 + MOVE * hand[:, None, None, 4:6]


def _parabolas() -> Tensor:
    """(STEPS, POINTS): the weights of the points of a Bezier curve at 0 <= t <= 1."""
    t = torch.linspace(0, 1, STEPS, dtype=torch.float64)
    return torch.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2], dim=1)


def ink_of(curves: Tensor, drawn: Tensor, width: Tensor, size: int) -> Tensor:
    """The ink, (n, size, size) in [0, 1], of the ``drawn`` strokes, (n, STROKES), of curves (n, STROKES, STEPS, 2),
    with pen widths (n,).

    Between two points of a curve, ink is spread from their middle. The Gaussian is the product of a Gaussian in the row
    and one in the column, so the sum over the points is a product of matrices.
    """
    middle, step = (curves[:, :, 1:] + curves[:, :, :-1]) / 2, (curves[:, :, 1:] - curves[:, :, :-1])
    width = width[:, None]
    amount = (step.norm(dim=3) * drawn[..., None]).flatten(1) * 2 / (math.sqrt(2 * math.pi) * width)
    pixels = (torch.arange(size, dtype=amount.dtype) + 0.5) / size
    columns, rows = (
        (-((pixels - middle[..., k].flatten(1)[..., None]) ** 2) / (2 * width[..., None] ** 2)).exp() for k in (0, 1)
    )
    return (rows.mT @ (amount[..., None] * columns)).clamp(max=1)
