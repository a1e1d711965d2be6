"""Small sources of classes: one whose images say what they are, and folders on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from deqopt_tasks.omniglot.characters import BACKGROUND, DRAWERS, EVALUATION, FOLDER, SIDE
from deqopt_tasks.omniglot.sources import ClassSource
from PIL import Image
from torch import Tensor

from deqopt.data import Splits

LEVELS = 1024


class Numbered(ClassSource):
    """Class c has 6, 7 or 8 images of 2 x 2 pixels; image i is ``[[1, c / 1024], [i / 1024, 0]]``.

    So pixels say, to the bit, which image it is and by how many quarters it was turned. Train, val and test are 40, 10
    and 12 classes in no order.
    """

    def __init__(self) -> None:
        super().__init__("the numbered images", size=2, channels=1)
        self._order = np.random.default_rng(0).permutation(len(self)).tolist()

    def __len__(self) -> int:
        return 62

    def name(self, index: int) -> str:
        return f"class {index}"

    def count(self, c: int) -> int:
        return 6 + c % 3

    def images(self, classes: Tensor, numbers: Tensor) -> Tensor:
        assert (numbers < 6 + classes % 3).all() and (numbers >= 0).all()
        ones = torch.ones(len(classes))
        return torch.stack([ones, classes / LEVELS, numbers / LEVELS, 0 * ones], dim=1).view(-1, 1, 2, 2)

    def splits(self, seed: int) -> Splits:
        return Splits(*(sorted(part) for part in (self._order[:40], self._order[40:50], self._order[50:])))


def identities(images: Tensor) -> Tensor:
    """(..., 3) int64 of images (..., 1, 2, 2) of `Numbered`: class, number, quarters by which it is turned."""
    flat = images.flatten(-3)
    # The corner that is 1 goes around against the clock: top left, bottom left, bottom right, top right.
    quarters = torch.tensor([0, 3, 1, 2])[flat.argmax(-1)]
    pairs = zip(images.flatten(0, -4), quarters.flatten().tolist(), strict=True)
    upright = torch.stack([image.rot90(-k, (1, 2)) for image, k in pairs])
    values = (upright.flatten(1)[:, 1:3] * LEVELS).long().view(*quarters.shape, 2)
    return torch.cat([values, quarters[..., None]], dim=-1)


def write_class(folder: Path, count: int, side: int = 8, seed: int = 0) -> Path:
    """A folder of grey noise, 0.png and on."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng([seed, *folder.name.encode()]).integers(0, 256, (count, side, side), np.uint8)
    for i, image in enumerate(noise):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


def write_classes(root: Path, counts: dict[str, int]) -> Path:
    """One folder a class, with as many images."""
    for name, count in counts.items():
        write_class(root / name, count)
    return root


def write_omniglot(root: Path, background: dict[str, int], evaluation: dict[str, int]) -> Path:
    """Noise of one bit in the layout of Omniglot, with so many characters in every alphabet."""
    random = np.random.default_rng(0)
    for part, alphabets in ((BACKGROUND, background), (EVALUATION, evaluation)):
        for alphabet, characters in alphabets.items():
            for character in range(1, characters + 1):
                folder = root / FOLDER / part / alphabet / f"character{character:02d}"
                folder.mkdir(parents=True)
                for drawer in range(1, DRAWERS + 1):
                    pixels = random.random((SIDE, SIDE)) < 0.9
                    Image.fromarray(pixels).save(folder / f"{character:04d}_{drawer:02d}.png")
    return root
