"""Random shifts and mirroring of training images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deqopt.ranges import not_negative


@dataclass(frozen=True)
class Augmentation:
    """Shifts every image of a batch by up to `shift` pixels in each direction, and mirrors it with probability 1/2.

    All shifts are equally likely, including 0. Uncovered pixels are black.

    Args:
        shift: largest shift of an image in pixels; 0 (default) for no shift.
        flip: whether to swap left and right with probability 1/2; off by default.

    Raises:
        ProblemError: a negative shift.

    Example:
        >>> import torch
        >>> from deqopt.data import Augmentation, generator_of
        >>> moved = Augmentation(shift=2, flip=True)(torch.rand(4, 1, 8, 8), generator_of(0, 1))
    """

    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        not_negative("Augmentation", shift=self.shift)

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The augmented images, (B, channels, size, size); black is 0. A new tensor if anything is changed.

        Args:
            images: (B, channels, size, size).
            generator: generator of the random numbers; by default the global one of PyTorch.
        """
        if self.flip:
            mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
            images = torch.where(mirrored, images.flip(3), images)
        if self.shift:
            height, width = images.shape[2:]
            windows = F.pad(images, [self.shift] * 4).unfold(2, height, 1).unfold(3, width, 1)
            top, left = torch.randint(2 * self.shift + 1, (2, len(images)), generator=generator)
            images = windows[torch.arange(len(images)), :, top, left]
        return images
