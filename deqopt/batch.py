"""Batches as trees of tensors with the batch first: which samples are finite, and picking samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def leaves(batch: Any) -> list[Tensor]:
    """The tensors of a tree of tuples, lists, named tuples and dicts."""
    if isinstance(batch, Tensor):
        return [batch]
    children = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return [leaf for child in children for leaf in leaves(child)]


def size_of(batch: Any) -> int:
    """The number of samples: the length of the first tensor's first dimension."""
    return next(leaf.shape[0] for leaf in leaves(batch) if leaf.dim())


def finite_samples(batch: Any) -> Tensor:
    """(B,) whether every floating-point entry of a sample is finite."""
    size = size_of(batch)
    floating = [leaf for leaf in leaves(batch) if leaf.is_floating_point() and leaf.dim() and leaf.shape[0] == size]
    finite = [leaf.reshape(size, -1).isfinite().all(1) for leaf in floating]
    return torch.stack(finite).all(0) if finite else torch.ones(size, dtype=torch.bool)


def pick(batch: Any, keep: Tensor) -> Any:
    """The samples where ``keep``, (B,), is true, in a tree of the same kind."""
    size = keep.shape[0]
    if isinstance(batch, Tensor):
        return batch[keep] if batch.dim() and batch.shape[0] == size else batch
    if isinstance(batch, Mapping):
        return {key: pick(value, keep) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(pick(value, keep) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(pick(value, keep) for value in batch)
    return batch
