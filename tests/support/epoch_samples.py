"""The samples of an epoch by their index, which is the last part of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

Samples = dict[int, Any]


def by_index(samples: Iterable[Any]) -> Samples:
    """Samples, of which none may come twice."""
    found: Samples = {}
    for sample in samples:
        assert int(sample[-1]) not in found
        found[int(sample[-1])] = sample
    return found


def rows(batches: Iterable[Any]) -> Samples:
    """The rows of batches that are named tuples, as such tuples."""
    return by_index(type(batch)(*row) for batch in batches for row in zip(*batch, strict=True))


def same(first: Samples, second: Samples) -> bool:
    """Whether they are the same to the bit, and in the same order."""
    return list(first) == list(second) and all(
        torch.equal(torch.as_tensor(one), torch.as_tensor(other))
        for index in first
        for one, other in zip(first[index], second[index], strict=True)
    )
