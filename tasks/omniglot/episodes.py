"""Episodes: a few classes, with a few images of each class to learn from, and other images to classify.

The random choices of an episode depend only on a seed and its place, ``(split, epoch, index)``. So they are the same in
every pass, and for every number of workers, processes and episodes per batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from deqopt.data import generator_of

from .sources import ClassSource

Place = tuple[int, ...]
"""The split, the epoch and the index of an episode."""


class EpisodeBatch(NamedTuple):
    """B episodes with the same numbers of classes and images; a row, without B, is one episode.

    Attributes:
        support: (B, S, channels, size, size), float32 in [0, 1], as in the files: paper is 1, ink is 0.
        support_label: (B, S) int64, 0 to ways - 1, every class at least once.
        query: (B, Q, channels, size, size).
        query_label: (B, Q) int64, -1 where the class is unknown.
        index: (B,) int64, the number of the episode in its split.
    """

    support: Tensor
    support_label: Tensor
    query: Tensor
    query_label: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nothing here needs


@dataclass(frozen=True)
class EpisodeShape:
    """The shape of an episode: `ways` classes, each with `shots` support images and `queries` query images."""

    ways: int
    shots: int
    queries: int

    @property
    def images(self) -> int:
        """The number of images per class."""
        return self.shots + self.queries


class ClassPool:
    """The classes of a split, and their images.

    With `rotations`, the images of a class rotated by 90, 180 and 270 degrees are additional classes (Santoro et al.
    2016): with n given classes, class ``c + k n`` is class c rotated by k quarter turns, counter-clockwise.

    Attributes:
        counts: (classes,) int64, the number of images of each class.

    Args:
        source: source of the images.
        classes: classes of the split.
        rotations: whether to add rotated classes, which gives four times as many classes.
    """

    def __init__(self, source: ClassSource, classes: Sequence[int], *, rotations: bool = False) -> None:
        self._source, self._classes = source, torch.tensor(classes)
        self.counts = torch.tensor([source.count(c) for c in classes]).repeat(4 if rotations else 1)

    def __len__(self) -> int:
        return len(self.counts)

    def images(self, classes: Tensor, numbers: Tensor) -> Tensor:
        """Image ``numbers[i]`` of class ``classes[i]`` of the pool, for all i: (n, channels, size, size)."""
        quarters = classes // len(self._classes)
        images = self._source.images(self._classes[classes % len(self._classes)], numbers)
        for k in (1, 2, 3):
            turned = quarters == k
            images[turned] = images[turned].rot90(k, (2, 3))
        return images


class Chosen(NamedTuple):
    """The images of an episode: its classes in the order of their labels, (ways,), and the numbers of their images,
    (ways, shots + queries), support images first. Both int64."""

    classes: Tensor
    numbers: Tensor


class ImageChoice(ABC):
    """Chooses the images of an episode, at random: all by its place and a seed."""

    @abstractmethod
    def __call__(self, place: Place) -> Chosen: ...


@dataclass(frozen=True)
class OwnChoice(ImageChoice):
    """Classes without replacement, in random order, and images of each without replacement.

    Args:
        counts: (classes,) the numbers of images of the classes.
        shape: shape of the episodes; there must be enough classes and images for it.
        seed: 0 or larger.
    """

    counts: Tensor
    shape: EpisodeShape
    seed: int

    def __call__(self, place: Place) -> Chosen:
        generator = generator_of(self.seed, *place)
        classes = torch.randperm(len(self.counts), generator=generator)[: self.shape.ways]
        counts = self.counts[classes]
        rank = torch.rand(len(classes), int(counts.max()), dtype=torch.float64, generator=generator)
        rank[torch.arange(rank.shape[1]) >= counts[:, None]] = 1
        return Chosen(classes, rank.argsort(dim=1)[:, : self.shape.images])


class Episodes(Dataset[EpisodeBatch]):
    """Episodes of a split. Item ``epoch * count + index`` is an episode of that epoch, so epoch 0 has items 0 to
    count - 1.

    Rows are in the order of their labels; classes get their labels at random.

    Args:
        pool: the classes.
        choice: chooses the images of an episode.
        shape: shape of the episodes.
        split: number of the split.
        count: number of episodes per epoch.
        distort: function that distorts the images (ways, images, channels, size, size) of an episode, by its place.
    """

    def __init__(
        self,
        pool: ClassPool,
        choice: ImageChoice,
        shape: EpisodeShape,
        *,
        split: int,
        count: int,
        distort: Callable[[Tensor, Place], Tensor] | None = None,
    ) -> None:
        self._pool, self._choice, self._shape, self._split, self._count = pool, choice, shape, split, count
        self._distort = distort

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, item: int) -> EpisodeBatch:
        epoch, index = divmod(item, self._count)
        place = (self._split, epoch, index)
        classes, numbers = self._choice(place)
        images = self._pool.images(classes.repeat_interleave(self._shape.images), numbers.flatten())
        images = images.unflatten(0, numbers.shape)
        if self._distort is not None:
            images = self._distort(images, place)
        support, query = images.split([self._shape.shots, self._shape.queries], dim=1)
        labels = torch.arange(self._shape.ways)
        return EpisodeBatch(
            support.flatten(0, 1),
            labels.repeat_interleave(self._shape.shots),
            query.flatten(0, 1),
            labels.repeat_interleave(self._shape.queries),
            torch.tensor(index),
        )
