"""Hidden states and their packing: a tensor or a tuple of tensors (multiscale) as rows of one matrix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from deqopt.errors import ProblemError

State: TypeAlias = Tensor | tuple[Tensor, ...]


def tensors_of(state: State) -> tuple[Tensor, ...]:
    """The tensors of a state, also if it is a single tensor."""
    return (state,) if isinstance(state, Tensor) else tuple(state)


def state_of(parts: Iterable[Tensor], like: State) -> State:
    """The inverse of :func:`tensors_of`: a state of the same structure as ``like``."""
    parts = tuple(parts)
    return parts[0] if isinstance(like, Tensor) else parts


def detach(state: State) -> State:
    """The same values without their history."""
    return state_of((part.detach() for part in tensors_of(state)), state)


def leaf(state: State) -> State:
    """The same values as new leaves, to differentiate with respect to."""
    return state_of((part.detach().requires_grad_() for part in tensors_of(state)), state)


def zero_where(lost: Tensor, state: State) -> State:
    """The same state with zeros in the samples where ``lost``, (B,): a NaN would spoil gradients even with weight 0."""
    return filled_where(lost, state, 0.0)


def filled_where(lost: Tensor, state: State, value: float) -> State:
    """The same state with ``value`` in the samples where ``lost``, (B,); itself where it is known that none is."""
    if known_all(~lost):
        return state
    return state_of(
        (part.masked_fill(lost.reshape(-1, *[1] * (part.dim() - 1)), value) for part in tensors_of(state)), state
    )


def known_all(chosen: Tensor) -> bool:
    """Whether all of ``chosen``, (B,), are true, as far as it costs nothing to know: an accelerator is not asked."""
    return chosen.device.type == "cpu" and bool(chosen.all())


def unit(rows: Tensor) -> Tensor:
    """Rows (B, width) divided by their lengths; zero rows stay zero. Squares of tiny entries do not underflow, because
    rows are first divided by their largest entry."""
    largest = rows.detach().abs().amax(dim=1, keepdim=True) if rows.shape[1] else rows.new_zeros(len(rows), 1)
    scaled = rows / torch.where(largest > 0, largest, 1.0)
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / torch.where(length > 0, length, 1.0)


@dataclass(frozen=True)
class Layout:
    """The positions of a state with shapes ``(B, *shape)`` in the rows of a matrix ``(B, width)``."""

    shapes: tuple[tuple[int, ...], ...]
    is_tuple: bool

    @classmethod
    def of(cls, state: State) -> Layout:
        parts = tensors_of(state)
        return cls(tuple(tuple(part.shape[1:]) for part in parts), not isinstance(state, Tensor))

    @property
    def widths(self) -> list[int]:
        return [prod(shape) for shape in self.shapes]

    @property
    def width(self) -> int:
        return sum(self.widths)

    def pack(self, state: State, dtype: torch.dtype) -> Tensor:
        """The state as one row per sample, ``(B, width)``, in ``dtype``."""
        rows = self.rows(state, dtype)
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def rows(self, state: State, dtype: torch.dtype) -> list[Tensor]:
        """What :meth:`pack` puts side by side: (B, width) of each tensor."""
        return [part.reshape(part.shape[0], part.shape[1:].numel()).to(dtype) for part in tensors_of(state)]

    def unpack(self, rows: Tensor) -> State:
        """The inverse of :meth:`pack`: views into ``rows``."""
        parts = tuple(
            part.reshape(rows.shape[0], *shape)
            for part, shape in zip(rows.split(self.widths, dim=1), self.shapes, strict=True)
        )
        return parts if self.is_tuple else parts[0]


def work_dtype(state: State) -> torch.dtype:
    """The precision in which solver states are kept: that of the state, at least float32."""
    dtype = torch.float32
    for part in tensors_of(state):
        dtype = torch.promote_types(dtype, part.dtype)
    return dtype


def check_same_layout(returned: State, expected: State, what: str) -> None:
    """Raise ProblemError unless ``returned`` is floating-point, with structure, shapes and device of ``expected``."""
    parts = (returned,) if isinstance(returned, Tensor) else returned
    known = isinstance(parts, (tuple, list)) and all(isinstance(part, Tensor) for part in parts)
    if not known or isinstance(returned, Tensor) != isinstance(expected, Tensor):
        raise ProblemError(f"{what} returned {_describe(returned)} for a state that is {_describe(expected)}")
    got, want = tensors_of(returned), tensors_of(expected)
    if [part.shape for part in got] != [part.shape for part in want]:
        raise ProblemError(
            f"{what} must keep the shape of z: it got {_describe(expected)}, returned {_describe(returned)}"
        )
    if not all(part.is_floating_point() for part in got):
        kinds = ", ".join(str(part.dtype).removeprefix("torch.") for part in got)
        raise ProblemError(f"{what} must return floating-point tensors, as z is; it returned {kinds}")
    if [part.device for part in got] != [part.device for part in want]:
        raise ProblemError(
            f"{what} must stay on the device of z ({want[0].device}), but returned a tensor on {got[0].device}"
        )


def _describe(state: object) -> str:
    if isinstance(state, Tensor):
        return f"a tensor {tuple(state.shape)}"
    if isinstance(state, (tuple, list)):
        parts = (str(tuple(part.shape)) if isinstance(part, Tensor) else type(part).__name__ for part in state)
        return f"a {type(state).__name__} of " + ", ".join(parts)
    return f"a {type(state).__name__}"
