"""Episodes chosen by the task transforms of learn2learn (Arnold et al. 2020)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils.data import Dataset

from deqopt.data import generator_of

from .episodes import Chosen, EpisodeShape, ImageChoice, Place
from .optional import learn2learn


class Learn2LearnChoice(ImageChoice):
    """NWays, KShots, RemapLabels and ConsecutiveLabels of learn2learn, and its partition into support and query.

    They draw from Python's global generator, which is seeded for each episode and restored afterwards. They load only
    the numbers of images, so that the images of an episode are gathered at once.

    Arguments are those of :class:`OwnChoice`.

    Raises:
        ProblemError: learn2learn is missing.
    """

    def __init__(self, counts: Tensor, shape: EpisodeShape, seed: int) -> None:
        self._package = learn2learn("the sampler LEARN2LEARN", "the sampler OWN")
        self._shape, self._seed = shape, seed
        ends = list(accumulate(counts.tolist()))
        self._starts = torch.tensor([0, *ends[:-1]])
        self._class = torch.repeat_interleave(torch.arange(len(counts)), counts)
        members = {
            c: list(range(end - count, end)) for c, (count, end) in enumerate(zip(counts.tolist(), ends, strict=True))
        }
        data, transforms = self._package.data, self._package.data.transforms
        classes = data.MetaDataset(
            _Numbers(self._class),
            labels_to_indices=members,
            indices_to_labels=dict(enumerate(self._class.tolist())),
        )
        self._tasks = data.Taskset(
            classes,
            task_transforms=[
                transforms.NWays(classes, n=shape.ways),
                transforms.KShots(classes, k=shape.images),
                transforms.LoadData(classes),
                transforms.RemapLabels(classes),
                transforms.ConsecutiveLabels(classes),
            ],
        )

    def __call__(self, place: Place) -> Chosen:
        with _python_seed(generator_of(self._seed, *place).initial_seed()):
            images, labels = self._tasks.sample()
        (support, _), (query, _) = self._package.data.partition_task(images, labels, shots=self._shape.shots)
        ways = self._shape.ways
        chosen = torch.cat([support.view(ways, -1), query.view(ways, -1)], dim=1)
        classes = self._class[chosen[:, 0]]
        return Chosen(classes, chosen - self._starts[classes][:, None])


class _Numbers(Dataset[tuple[int, int]]):
    """The number of an image and its class."""

    def __init__(self, classes: Tensor) -> None:
        self._classes = classes.tolist()

    def __len__(self) -> int:
        return len(self._classes)

    def __getitem__(self, number: int) -> tuple[int, int]:
        return number, self._classes[number]


@contextmanager
def _python_seed(seed: int) -> Iterator[None]:
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
