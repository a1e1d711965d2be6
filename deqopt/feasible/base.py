"""What every feasible set does, and the measures of samples that sets share."""

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
"""Metadata of a field whose tensors, unless they are scalars, have one row a sample, whatever their other dimensions:
``radius: Tensor = field(metadata=A_SAMPLE)``."""


class FeasibleSet(ABC):
    """A closed convex set of inputs, known by its projection.

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
        """The set for the samples where ``keep``, (B,), is true, of inputs with ``dim`` dimensions.

        Of a dataclass, it has the rows of these samples: of tensors with ``dim`` dimensions and B rows, of tensors in
        fields with the metadata :data:`A_SAMPLE`, and of sets; also within tuples, lists and dicts. All other values
        are shared by all samples. A shared tensor must not have ``dim`` dimensions and B rows.

        None says that the set cannot be had for some samples; then samples that have converged stay in the batch. It is
        the answer for a set that is no dataclass, that has attributes besides its fields, or whose tensor has ``dim``
        dimensions and neither one row nor B: such a set defines its own ``pick``.
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
    """It cannot be told whose the rows of a tensor are."""


def _is_a_sample(field: Field[Any]) -> bool:
    return A_SAMPLE.items() <= field.metadata.items()


def _picked(value: Any, keep: Tensor, dim: int | None) -> Any:
    """The rows of the samples ``keep``; with ``dim`` None of every tensor that is no scalar."""
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
    """A number, or a tensor that broadcasts to x, in precision and place of x.

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
    """A number, or a tensor of one a sample, (B,), as a tensor that broadcasts to x, (B, *input).

    Raises:
        ProblemError: it has another number of entries than x has samples.
    """
    numbers = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    if numbers.dim() and len(numbers) not in (1, len(x)):
        raise ProblemError(f"{what} has {len(numbers)} entries for {len(x)} samples: give a number, or one a sample")
    return numbers.reshape(-1, *[1] * (x.dim() - 1))


def largest(x: Tensor) -> Tensor:
    """(B, 1, ...) the largest magnitude in a sample, at least the smallest normal number; without a gradient."""
    magnitude = x.detach().abs().flatten(1)
    highest = magnitude.amax(1) if magnitude.shape[1] else magnitude.sum(1)
    return highest.clamp_min(torch.finfo(x.dtype).tiny).reshape(-1, *[1] * (x.dim() - 1))


def length(x: Tensor) -> Tensor:
    """(B,) the Euclidean norm of every sample; neither overflows nor underflows where the norm itself does not."""
    unit = largest(x)
    return (x / unit).flatten(1).norm(dim=1) * unit.flatten()
