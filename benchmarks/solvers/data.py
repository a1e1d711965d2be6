"""scikit-learn's digits as small grey images: for training, for choosing settings, and for the reported figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Batch(NamedTuple):
    """Images (B, 1, size, size) in [-1, 1] and their labels (B,), 0 to 9."""

    image: Tensor
    label: Tensor

    def first(self, count: int) -> Batch:
        """The first ``count`` samples."""
        return Batch(self.image[:count], self.label[:count])

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(self.image.to(device), self.label.to(device))


@dataclass(frozen=True)
class Digits:
    """The three splits, with no image in two of them.

    Attributes:
        train: 1197 images, which the models are trained on.
        validation: 300, on which step sizes and step counts are chosen.
        test: 300, of which the reported figures are.
        seed: of the division.
    """

    train: Batch
    validation: Batch
    test: Batch
    seed: int

    @classmethod
    def load(cls, size: int = 16, seed: int = 0) -> Digits:
        """Digits resized to ``size`` x ``size``; ``seed`` fixes the division."""
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]

        digits = load_digits()
        grey = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
        image = F.interpolate(grey, size=(size, size), mode="bilinear", align_corners=False)
        label = torch.tensor(digits.target)
        order = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
        train, validation, test = order.split([len(order) - 600, 300, 300])
        parts = [Batch(image[rows], label[rows]) for rows in (train, validation, test)]
        return cls(parts[0], parts[1], parts[2], seed)
