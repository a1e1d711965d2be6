"""Every way to read a user's folder of images, on small folders that any of them takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from deqopt_tasks.denoising.data import DamagedImages
from deqopt_tasks.denoising.operators import Denoising
from deqopt_tasks.omniglot.opening import open_classes
from deqopt_tasks.omniglot.prediction import FolderEpisode
from PIL import Image
from torch import Tensor

from deqopt.data import ImageFolder, ImageSource, open_images, open_labelled

Read = Callable[[Path], list[Tensor]]
"""All images in a folder that can be read; raises what the reader raises."""

SIDE = 4


def image(path: Path, level: int) -> Path:
    """A grey image that is known by its level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((SIDE, SIDE), level, np.uint8)).save(path)
    return path


def classes(root: Path, first: int = 0) -> Path:
    """Three classes of two images, with the levels ``first`` to ``first + 5``."""
    for i, name in enumerate(("ant/0", "ant/1", "bee/0", "bee/deep/1", "cat/0", "cat/1")):
        image(root / f"{name}.png", first + i)
    return root


def readable(source: ImageSource) -> list[Tensor]:
    return [source[index].image for index in source.readable]


def labelled(root: Path) -> list[Tensor]:
    source = open_labelled(root, size=SIDE, channels=1, classes=3)
    assert source.class_names == ["ant", "bee", "cat"]
    return readable(source)


def by_class(root: Path) -> list[Tensor]:
    source = open_classes(root, size=SIDE, channels=1)
    return [one for c in range(len(source)) for one in source[c]]


def damaged(root: Path) -> list[Tensor]:
    return [(sample.y + 1) / 2 for sample in DamagedImages(root, Denoising(), 1)]


def queries(root: Path) -> list[Tensor]:
    """Classified by the support of a folder beside it."""
    support = root.parent / "the support"
    for name in "ab":
        image(support / name / "0.png", 0)
    episode = FolderEpisode(support, root, SIDE, 1, chunk=4)
    return [one for chunk in range(len(episode)) for one in episode[chunk].query]


def support(root: Path) -> list[Tensor]:
    """With a query in a folder beside it."""
    image(root.parent / "the queries" / "0.png", 0)
    episode = FolderEpisode(root, root.parent / "the queries", SIDE, 1)
    assert episode.class_names == ["ant", "bee", "cat"]
    return list(episode[0].support)


READERS: dict[str, Read] = {
    "ImageFolder": lambda root: readable(ImageFolder(root, SIDE, 1)),
    "open_images": lambda root: readable(open_images(root, size=SIDE, channels=1)),
    "open_labelled": labelled,
    "classes of episodes": by_class,
    "images to restore": damaged,
    "queries": queries,
    "support": support,
}


def levels(images: list[Tensor]) -> Counter[int]:
    """How often each level is there."""
    return Counter(round(255 * float(one.mean())) for one in images if torch.isfinite(one).all())
