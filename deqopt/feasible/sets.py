"""Sets whose projections are known in closed form, or in closed form up to one number."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.feasible.base import A_SAMPLE, FeasibleSet, largest, length, like, one_a_sample


@dataclass(frozen=True)
class Everywhere(FeasibleSet):
    """No constraint.

    Example:
        >>> import torch
        >>> from deqopt.feasible import Everywhere
        >>> Everywhere().project(torch.tensor([[-3.0, 4.0]]))
        tensor([[-3.,  4.]])
    """

    def project(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Box(FeasibleSet):
    """``low <= x <= high`` in every entry.

    Args:
        low, high: numbers, or tensors that broadcast to x.

    Raises:
        ProblemError: somewhere ``low > high``.

    Example:
        >>> import torch
        >>> from deqopt.feasible import Box
        >>> Box(low=0.0, high=torch.tensor([1.0, 2.0])).project(torch.tensor([[-3.0, 4.0]]))
        tensor([[0., 2.]])
    """

    low: float | Tensor
    high: float | Tensor

    def __post_init__(self) -> None:
        if bool((torch.as_tensor(self.low) > torch.as_tensor(self.high)).any()):
            raise ProblemError("Box is empty: low must not be above high anywhere")

    def project(self, x: Tensor) -> Tensor:
        return clip(x, *self.bounds_of(x))

    def bounds_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``low`` and ``high`` as tensors that broadcast to x."""
        return like(self.low, x, "Box: low"), like(self.high, x, "Box: high")


@dataclass(frozen=True)
class Ball(FeasibleSet):
    """All points within ``radius`` of ``center`` in some norm.

    Args:
        radius: radius, not negative; a number, or a tensor (B,) with one number per sample.
        center: centre, which broadcasts to x; the origin if None.

    Raises:
        ProblemError: a radius that is negative, or neither one number nor one per sample.

    Example:
        >>> import torch
        >>> from deqopt.feasible import Ball, L2Ball
        >>> issubclass(L2Ball, Ball)
        True
    """

    radius: float | Tensor = field(metadata=A_SAMPLE)
    center: Tensor | None = None

    def __post_init__(self) -> None:
        check_radius(self.radius, type(self).__name__)

    def project(self, x: Tensor) -> Tensor:
        if self.center is None:
            return self.shorten(x)
        center = self.center_of(x)
        return center + self.shorten(x - center)

    def center_of(self, x: Tensor) -> Tensor:
        """The centre as a tensor that broadcasts to x."""
        return like(0.0 if self.center is None else self.center, x, f"{type(self).__name__}: center")

    def radius_of(self, x: Tensor) -> Tensor:
        """The radius as a tensor that broadcasts to x: () or (B, 1, ...)."""
        return one_a_sample(self.radius, x, f"{type(self).__name__}: radius")

    @abstractmethod
    def shorten(self, offset: Tensor) -> Tensor:
        """The nearest offset from the centre that is not longer than the radius."""


class L2Ball(Ball):
    """``|x - center|_2 <= radius`` for every sample.

    Example:
        >>> import torch
        >>> from deqopt.feasible import L2Ball
        >>> L2Ball(radius=1.0).project(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """

    def shorten(self, offset: Tensor) -> Tensor:
        radius, unit = self.radius_of(offset), largest(offset)
        direction = offset / unit  # its largest entry is 1, so its norm neither overflows nor underflows
        norm = direction.flatten(1).norm(dim=1).reshape(unit.shape).clamp_min(0.5)
        return torch.where(norm * unit > radius, direction / norm * radius, offset)


class LinfBall(Ball):
    """``|x - center|_inf <= radius``: no entry further than ``radius`` from the centre.

    Example:
        >>> import torch
        >>> from deqopt.feasible import LinfBall
        >>> LinfBall(radius=1.0).project(torch.tensor([[0.5, 4.0]]))
        tensor([[0.5000, 1.0000]])
    """

    def shorten(self, offset: Tensor) -> Tensor:
        radius = self.radius_of(offset)
        return clip(offset, -radius, radius)


@dataclass(frozen=True)
class L2BallInBox(FeasibleSet):
    """``|x|_2 <= radius`` and ``low <= x <= high`` for every sample, where ``low <= 0 <= high``: a ball of
    perturbations that keep pixels valid.

    The nearest point is ``clip(t x, low, high)`` with the largest t in [0, 1] for which it is in the ball. The factor t
    comes from the multiplier of the ball, and the clipping from the multipliers of the box. t is found exactly. The
    search starts with no clipped entries; then ``t^2 = (radius^2 - sum of squares of the clipped entries) / (sum of
    squares of the other entries)`` only grows, and clipped entries stay clipped.

    Args:
        radius: radius, not negative; a number, or a tensor (B,) with one number per sample.
        low, high: numbers, or tensors that broadcast to x.

    Raises:
        ProblemError: a negative radius, or a box without the origin.

    Example:
        >>> import torch
        >>> from deqopt.feasible import L2BallInBox
        >>> image = torch.tensor([[0.9, 0.5]])
        >>> valid = L2BallInBox(radius=1.0, low=-image, high=1 - image)
        >>> image + valid.project(torch.tensor([[5.0, 0.1]]))
        tensor([[1.0000, 0.6000]])
    """

    radius: float | Tensor = field(metadata=A_SAMPLE)
    low: float | Tensor
    high: float | Tensor

    def __post_init__(self) -> None:
        check_radius(self.radius, type(self).__name__)
        if bool((torch.as_tensor(self.low) > 0).any()) or bool((torch.as_tensor(self.high) < 0).any()):
            raise ProblemError(f"{type(self).__name__}: the box must hold the origin: low must be <= 0 and high >= 0")

    def project(self, x: Tensor) -> Tensor:
        low, high = (like(bound, x, f"{type(self).__name__}: a bound") for bound in (self.low, self.high))
        radius = one_a_sample(self.radius, x, f"{type(self).__name__}: radius")
        clipped, unit = clip(x, low, high), largest(x)
        too_long = length(clipped) > radius.flatten()
        if not bool(too_long.any()):
            return clipped
        # Bounds in units of the radius and x in units of its largest entry, in double precision: squares stay in range.
        entries, radii = (x / unit).double(), torch.where(radius > 0, radius, 1).double()
        limits = (torch.where(x > 0, high, low) / radii).clamp(-2, 2).square().flatten(1)
        shrink = _shrinking(entries.square().flatten(1), limits, too_long).reshape(unit.shape)
        inside = clip((entries * (shrink * radius)).to(x.dtype), low, high)
        return torch.where(too_long.reshape(unit.shape), inside, clipped)


def _shrinking(squares: Tensor, limits: Tensor, active: Tensor) -> Tensor:
    """(B,) the t with ``sum_i min(t^2 squares_i, limits_i) = 1`` for ``active`` samples; squares, limits are (B, n)."""
    clipped = torch.zeros_like(squares, dtype=torch.bool)
    while True:
        left = 1 - torch.where(clipped, limits, 0).sum(1)
        free = torch.where(clipped, 0, squares).sum(1)
        known = active & (left > 0) & (free > 0)
        square = torch.where(known, left, 0) / torch.where(known, free, 1)
        more = (square[:, None] * squares > limits) & ~clipped
        if not bool(more.any()):
            return torch.where(known, torch.where(known, square, 1).sqrt(), 0)
        clipped = clipped | more


def clip(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``min(max(x, low), high)``, differentiable in all three."""
    return torch.minimum(torch.maximum(x, low), high)


def check_radius(radius: float | Tensor, kind: str) -> None:
    """Raise ProblemError unless there is one radius or one per sample, and every radius is 0 or larger."""
    numbers = torch.as_tensor(radius)
    if numbers.dim() > 1:
        raise ProblemError(
            f"{kind}: radius must be one number, or one per sample, (B,), got a tensor {tuple(numbers.shape)}"
        )
    if not bool((numbers >= 0).all()):
        worst = radius if numbers.dim() == 0 and not isinstance(radius, Tensor) else float(numbers.min())
        raise ProblemError(f"{kind}: radius must be 0 or larger, got {worst}")
