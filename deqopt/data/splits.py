"""Splits that are determined by a seed and disjoint, with no group in two of them."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from deqopt.errors import DataError


class Part(Enum):
    """A part of a data set; the value is the name of its folder or file."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


@dataclass(frozen=True)
class Splits:
    """Ascending indices into one source; disjoint, and together all images that can be read.

    Example:
        >>> Splits([0, 1, 4], [2], [3, 5]).without({1, 5}, "the faces")[Part.TEST]
        [3]
    """

    train: list[int]
    val: list[int]
    test: list[int]

    def __getitem__(self, part: Part) -> list[int]:
        indices: list[int] = getattr(self, part.value)
        return indices

    def without(self, lost: Container[int], where: str) -> Splits:
        """The same splits without some indices.

        Args:
            lost: the indices to leave out.
            where: the source, for the error message.

        Raises:
            DataError: nothing is left of a split.
        """
        left = Splits(*([index for index in self[part] if index not in lost] for part in Part))
        for part in Part:
            if not left[part]:
                raise DataError(f"none of the {len(self[part])} image(s) of {part.value} in {where} can be read")
        return left


def split_groups(groups: NDArray[np.integer], seed: int, where: str) -> Splits:
    """Distribute whole groups: a tenth of them each (at least one) to val and test, the rest to train.

    Args:
        groups: (N,) the group of every image; `np.arange(N)` distributes single images.
        seed: 0 to 2**32 - 1; the splits depend only on `seed` and `groups`.
        where: the source, for the error message.

    Raises:
        DataError: fewer than three groups, or a seed out of range.
    """
    labels, membership = np.unique(groups, return_inverse=True)
    if len(labels) < 3:
        kind = "image(s)" if len(labels) == len(groups) else "group(s)"
        needed = "at least 3 are needed, one each to train, validate and test"
        raise DataError(f"cannot split {where}: it has {len(labels)} {kind}, {needed}")
    order = _shuffled(len(labels), seed, where)
    tenth = max(1, len(labels) // 10)
    part = np.empty(len(labels), int)
    part[order[:tenth]], part[order[tenth : 2 * tenth]], part[order[2 * tenth :]] = 1, 2, 0
    train, val, test = (np.flatnonzero(part[membership] == k).tolist() for k in range(3))
    return Splits(train, val, test)


def hold_out(indices: list[int], seed: int, where: str) -> tuple[list[int], list[int]]:
    """Hold out a tenth of some ascending indices (at least one) for val. Returns train (the rest), then val.

    Raises:
        DataError: fewer than two indices, or a seed out of range.
    """
    if len(indices) < 2:
        raise DataError(f"cannot split {where}: it has {len(indices)} image(s) to train on, at least 2 are needed")
    order = _shuffled(len(indices), seed, where)
    held = set(order[: max(1, len(indices) // 10)].tolist())
    train, val = ([index for i, index in enumerate(indices) if (i in held) == kept] for kept in (False, True))
    return train, val


def _shuffled(count: int, seed: int, where: str) -> NDArray[np.integer]:
    if not 0 <= seed < 2**32:
        raise DataError(f"cannot split {where} with seed {seed}: it should be 0 to {2**32 - 1}")
    # RandomState is the one generator whose stream NumPy promises never to change.
    return np.random.RandomState(seed).permutation(count)
