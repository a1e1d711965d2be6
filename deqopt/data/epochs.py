"""Random numbers by position, and the order of an epoch: they make a resumed run go on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count as counting
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch.utils.data import Dataset, Sampler


def generator_of(seed: int, *place: int) -> torch.Generator:
    """Random numbers that depend only on a seed and a place, such as (epoch, index).

    Args:
        seed: 0 or larger.
        place: numbers that are 0 or larger; tuples of different lengths are different places.
    """
    state = np.random.SeedSequence(seed, spawn_key=place).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


class EpochOrder(Sampler[int]):
    """``epoch * count + i`` for every i below ``count``, in an order that depends only on the seed and the epoch.

    So the order is the same in all processes of a run, each of which may take a share of it. A worker can compute the
    epoch from the requested item.

    Args:
        count: number of samples.
        seed: 0 or larger.
        epoch: function that returns the number of the epoch; called once in every pass.

    Example:
        >>> from deqopt.data import EpochOrder
        >>> second = list(EpochOrder(4, seed=0, epoch=lambda: 1))
        >>> sorted(second)
        [4, 5, 6, 7]
    """

    def __init__(self, count: int, seed: int, epoch: Callable[[], int]) -> None:
        self._count, self._seed, self._epoch = count, seed, epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        epoch = self._epoch()
        for i in torch.randperm(self._count, generator=generator_of(self._seed, epoch)).tolist():
            yield epoch * self._count + i


class EpochSamples(Dataset[Any]):
    """Samples that are changed at random in every epoch: item ``epoch * len + i`` is the i-th sample in an epoch.

    So a worker can compute the epoch from the items that a sampler such as `EpochOrder` requests.

    Args:
        source: dataset of the samples.
        indices: indices of the samples that are served, in this order.
        seed: 0 or larger.
        change: function that changes a sample, with a generator that depends only on the seed, the epoch and the index
            in the source; by default samples stay unchanged.

    Example:
        >>> from deqopt.data import EpochSamples
        >>> samples = EpochSamples(["a", "b", "c"], indices=[2, 0], seed=0)
        >>> samples[2], samples[3]  # the first and the second of the second epoch
        ('c', 'a')
    """

    def __init__(
        self,
        source: Dataset[Any],
        indices: list[int],
        seed: int,
        change: Callable[[Any, torch.Generator], Any] | None = None,
    ) -> None:
        self._source, self._indices, self._seed, self._change = source, indices, seed, change

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, item: int) -> Any:
        epoch, position = divmod(item, len(self))
        index = self._indices[position]
        sample = self._source[index]
        return sample if self._change is None else self._change(sample, generator_of(self._seed, epoch, index))


def epochs_of(trainer: Trainer | None) -> Callable[[], int]:
    """A function that returns the number of the epoch: that of the trainer, so that a resumed run goes on where it was;
    without a trainer 0, 1 and so on, one more at each call."""
    return counting().__next__ if trainer is None else lambda: trainer.current_epoch
