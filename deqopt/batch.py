"""Batches as trees of tensors with the batch first: which samples are finite, and picking samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from deqopt.errors import ProblemError

# Types of values besides tensors that a tree may contain; they are the same for all samples.
SHARED = (bool, int, float, complex, str, bytes, Enum, type(None), torch.dtype, torch.device)


def leaves(batch: Any) -> list[Tensor]:
    """The tensors of a tree of tuples, lists, named tuples, dicts and dataclasses."""
    return [leaf for _, leaf in _named(batch, "") if isinstance(leaf, Tensor)]


def size_of(batch: Any) -> int:
    """The number of samples: the length of the first tensor's first dimension."""
    return next(leaf.shape[0] for leaf in leaves(batch) if leaf.dim())


def finite_samples(batch: Any) -> Tensor:
    """(B,) whether every floating-point entry of a sample is finite."""
    size = size_of(batch)
    floating = [leaf for leaf in leaves(batch) if leaf.is_floating_point() and leaf.dim() and leaf.shape[0] == size]
    finite = [leaf.isfinite().reshape(size, leaf.shape[1:].numel()).all(1) for leaf in floating]
    return torch.stack(finite).all(0) if finite else torch.ones(size, dtype=torch.bool)


def pick(batch: Any, keep: Tensor) -> Any:
    """The samples where ``keep``, (B,), is true, in a tree of the same kind."""

    def picked(leaf: Any) -> Any:
        own = isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == keep.shape[0]
        return leaf[keep] if own else leaf

    return mapped(batch, picked)


def mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """The tree with all leaves changed."""
    if isinstance(tree, Mapping):
        return {key: mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(mapped(value, change) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(mapped(value, change) for value in tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{one.name: mapped(getattr(tree, one.name), change) for one in fields(tree) if one.init})
    return change(tree)


def check_samples(data: Any, size: int) -> None:
    """Raise ProblemError, naming the entry, unless every tensor of per-sample data has ``size`` samples.

    A shared tensor whose length happens to be the number of remaining samples could not be distinguished from
    per-sample data. So the functions should close over shared tensors.
    """
    for name, leaf in _named(data, "data"):
        if isinstance(leaf, Tensor):
            if leaf.dim() and leaf.shape[0] != size:
                raise ProblemError(
                    f"{name} must have one entry a sample, shape ({size}, ...), and has shape {tuple(leaf.shape)}: "
                    "let the functions close over what all samples share"
                )
        elif not isinstance(leaf, SHARED):
            raise ProblemError(
                f"{name} is a {type(leaf).__name__}: per-sample data are tensors with the batch first, in tuples, "
                "lists, dicts or dataclasses"
            )


def _named(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The leaves of a tree with the expressions that lead to them."""
    if isinstance(tree, Mapping):
        children = [(f"{name}[{key!r}]", value) for key, value in tree.items()]
    elif isinstance(tree, (tuple, list)):
        children = [(f"{name}[{index}]", value) for index, value in enumerate(tree)]
    elif is_dataclass(tree) and not isinstance(tree, type):
        children = [(f"{name}.{one.name}", getattr(tree, one.name)) for one in fields(tree)]
    else:
        yield name, tree
        return
    for path, child in children:
        yield from _named(child, path)
