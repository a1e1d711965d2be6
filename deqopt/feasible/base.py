"""The base class of feasible sets, and the measures of samples that the sets share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy
from dataclasses import Field, fields, is_dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from deqopt.errors import ProblemError

A_SAMPLE = MappingProxyType({"deqopt.feasible": "one row a sample"})
"""Metadata of a field whose tensors, unless they are scalars, have one row per sample, with any other dimensions:
``radius: Tensor = field(metadata=A_SAMPLE)``."""


class FeasibleSet(ABC):
    """A closed convex set of inputs, defined by its projection.

    Example:
        >>> from dataclasses import dataclass
        >>> import torch
        >>> from deqopt.feasible import FeasibleSet
        >>> @dataclass(frozen=True)
        ... class NotNegative(FeasibleSet):
        ...     def project(self, x):
        ...         return x.clamp_min(0)
        >>> NotNegative().distance(torch.tensor([[3.0, -4.0]]))
        tensor([4.])
    """

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """The nearest point of the set, sample by sample; ``x`` and the result are (B, *input)."""

    def distance(self, x: Tensor) -> Tensor:
        """(B,) Euclidean distance of every sample from the set: 0 inside."""
        return length(x - self.project(x))

    def pick(self, keep: Tensor, dim: int) -> FeasibleSet | None:
        """The set for the samples where ``keep``, (B,), is true, for inputs with ``dim`` dimensions.

        For a set that is a dataclass, the rows of these samples are taken from tensors with ``dim`` dimensions and B
        rows, from tensors in fields with the metadata :data:`A_SAMPLE`, and from sets, also within tuples, lists and
        dicts. All samples share all other values. A shared tensor must not have ``dim`` dimensions and B rows.

        None means that the set cannot be restricted to some samples; then converged samples stay in the batch. This is
        the result for a set that is not a dataclass, that has attributes besides its fields, or that has a tensor with
        ``dim`` dimensions and neither one row nor B rows. Such a set should define its own ``pick``.
        """
        own = {one.name: one for one in fields(self)} if is_dataclass(self) else {}
        if not is_dataclass(self) or own.keys() != vars(self).keys():
            return None
        picked = copy(self)
        for name, value in vars(self).items():
            try:
                object.__setattr__(picked, name, _picked(value, keep, None if _is_a_sample(own[name]) else dim))
            except _Unknown:
                return None
        return picked


class _Unknown(Exception):
    """It is unclear to which samples the rows of a tensor belong."""


def _is_a_sample(field: Field[Any]) -> bool:
    return A_SAMPLE.items() <= field.metadata.items()


def _picked(value: Any, keep: Tensor, dim: int | None) -> Any:
    """The rows of the samples ``keep``; if ``dim`` is None, of every tensor that is not a scalar."""
    if isinstance(value, FeasibleSet):
        picked = None if dim is None else value.pick(keep, dim)
        if picked is None:
            raise _Unknown
        return picked
    if isinstance(value, Mapping):
        return {key: _picked(one, keep, dim) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_picked(one, keep, dim) for one in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if not isinstance(value, Tensor) or value.dim() == 0 or (dim is not None and value.dim() != dim):
        return value
    if len(value) == len(keep):
        return value[keep]
    if len(value) == 1:
        return value
    raise _Unknown


def like(value: float | Tensor, x: Tensor, what: str) -> Tensor:
    """A number, or a tensor that broadcasts to x, as a tensor with the precision and on the device of x.

    Raises:
        ProblemError: it does not broadcast.
    """
    numbers = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    sizes = list(zip(reversed(numbers.shape), reversed(x.shape), strict=False))
    if numbers.dim() > x.dim() or any(own not in (1, other) for own, other in sizes):
        raise ProblemError(
            f"{what} has the shape {tuple(numbers.shape)}, which does not broadcast to x {tuple(x.shape)}"
        )
    return numbers


def one_a_sample(value: float | Tensor, x: Tensor, what: str) -> Tensor:
    """A number, or a tensor (B,) with one number per sample, as a tensor that broadcasts to x, (B, *input).

    Raises:
        ProblemError: the number of entries differs from the number of samples of x.
    """
    numbers = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    if numbers.dim() and len(numbers) not in (1, len(x)):
        raise ProblemError(f"{what} has {len(numbers)} entries for {len(x)} samples: give a number, or one per sample")
    return numbers.reshape(-1, *[1] * (x.dim() - 1))


def largest(x: Tensor) -> Tensor:
    """(B, 1, ...) the largest magnitude in each sample, at least the smallest normal number; without a gradient."""
    magnitude = x.detach().abs().flatten(1)
    highest = magnitude.amax(1) if magnitude.shape[1] else magnitude.sum(1)
    return highest.clamp_min(torch.finfo(x.dtype).tiny).reshape(-1, *[1] * (x.dim() - 1))


def length(x: Tensor) -> Tensor:
    """(B,) the Euclidean norm of every sample; overflows or underflows only if the norm itself does."""
    unit = largest(x)
    return (x / unit).flatten(1).norm(dim=1) * unit.flatten()
