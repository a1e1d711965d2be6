"""Feasible sets of the input x and the projections onto them. All act on every sample of a batch alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deqopt.errors import ProblemError


class FeasibleSet(ABC):
    """A closed convex set of inputs, known by its projection."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """The nearest point of the set, sample by sample; ``x`` and the result are (B, *input)."""

    def distance(self, x: Tensor) -> Tensor:
        """(B,) Euclidean distance of every sample from the set: 0 inside."""
        return (x - self.project(x)).flatten(1).norm(dim=1)

    def pick(self, keep: Tensor, dim: int) -> FeasibleSet | None:
        """The set for the samples where ``keep``, (B,), is true, of inputs with ``dim`` dimensions.

        None, the default, says that it cannot be had: then samples that have converged stay in the batch.
        """
        return None


@dataclass(frozen=True)
class Everywhere(FeasibleSet):
    """No constraint."""

    def project(self, x: Tensor) -> Tensor:
        return x

    def pick(self, keep: Tensor, dim: int) -> FeasibleSet:
        return self


@dataclass(frozen=True)
class Box(FeasibleSet):
    """``low <= x <= high`` in every entry.

    Args:
        low, high: numbers, or tensors that broadcast to x.

    Raises:
        ProblemError: somewhere ``low > high``.
    """

    low: float | Tensor
    high: float | Tensor

    def __post_init__(self) -> None:
        if bool((torch.as_tensor(self.low) > torch.as_tensor(self.high)).any()):
            raise ProblemError("Box is empty: low must not be above high anywhere")

    def project(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, _like(self.low, x)), _like(self.high, x))

    def pick(self, keep: Tensor, dim: int) -> FeasibleSet:
        return Box(_picked(self.low, keep, dim), _picked(self.high, keep, dim))


@dataclass(frozen=True)
class Ball(FeasibleSet):
    """All points within ``radius`` of ``center`` in some norm.

    Args:
        radius: not negative.
        center: broadcasts to x; the origin if None.

    Raises:
        ProblemError: a negative radius.
    """

    radius: float
    center: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.radius >= 0:
            raise ProblemError(f"{type(self).__name__}: radius must be 0 or larger, got {self.radius}")

    def project(self, x: Tensor) -> Tensor:
        if self.center is None:
            return self.shorten(x)
        center = _like(self.center, x)
        return center + self.shorten(x - center)

    def pick(self, keep: Tensor, dim: int) -> FeasibleSet:
        return self if self.center is None else replace(self, center=_picked(self.center, keep, dim))

    @abstractmethod
    def shorten(self, offset: Tensor) -> Tensor:
        """The nearest offset from the centre that is not longer than the radius."""


class L2Ball(Ball):
    """``|x - center|_2 <= radius`` a sample."""

    def shorten(self, offset: Tensor) -> Tensor:
        norm = offset.flatten(1).norm(dim=1).reshape(-1, *[1] * (offset.dim() - 1))
        longest = max(self.radius, torch.finfo(offset.dtype).tiny)
        return offset * torch.where(norm > self.radius, self.radius / norm.clamp_min(longest), 1.0)


class LinfBall(Ball):
    """``|x - center|_inf <= radius``: no entry further than ``radius`` from the centre."""

    def shorten(self, offset: Tensor) -> Tensor:
        return offset.clamp(-self.radius, self.radius)


@dataclass(frozen=True)
class L2BallInBox(FeasibleSet):
    """``|x|_2 <= radius`` and ``low <= x <= high`` a sample, where ``low <= 0 <= high``: a ball of perturbations that
    keeps pixels valid.

    The nearest point is ``clip(t x, low, high)`` with the largest t in [0, 1] that leaves it in the ball: shrinking is
    what the ball's multiplier does, and clipping what the box's does. t is found exactly: starting where nothing is
    clipped, ``t = (radius^2 - sum of squares of the clipped) / (sum of squares of the others)``, under the root, only
    grows, and what is clipped stays clipped.

    Args:
        radius: not negative.
        low, high: numbers, or tensors that broadcast to x.

    Raises:
        ProblemError: a negative radius, or a box without the origin.
    """

    radius: float
    low: float | Tensor
    high: float | Tensor

    def __post_init__(self) -> None:
        if not self.radius >= 0:
            raise ProblemError(f"{type(self).__name__}: radius must be 0 or larger, got {self.radius}")
        if bool((torch.as_tensor(self.low) > 0).any()) or bool((torch.as_tensor(self.high) < 0).any()):
            raise ProblemError(f"{type(self).__name__}: the box must hold the origin: low must be <= 0 and high >= 0")

    def project(self, x: Tensor) -> Tensor:
        low, high = (torch.broadcast_to(_like(bound, x), x.shape).flatten(1) for bound in (self.low, self.high))
        v = x.flatten(1)
        clipped = torch.minimum(torch.maximum(v, low), high)
        too_long = clipped.norm(dim=1, keepdim=True) > self.radius
        if not bool(too_long.any()):
            return clipped.reshape(x.shape)
        tiny = torch.finfo(v.dtype).tiny ** 0.5
        t = torch.zeros_like(v[:, :1])
        while True:
            scaled = t * v
            bound = torch.where(v > 0, high, low)
            beyond = (scaled - bound) * v.sign() > 0
            left = self.radius**2 - (bound * beyond).square().sum(1, keepdim=True)
            free = (v * ~beyond).norm(dim=1, keepdim=True).clamp_min(tiny)
            longer = (left.clamp_min(0).sqrt() / free).clamp_max(1.0)
            if not bool((longer > t * (1 + 4 * torch.finfo(v.dtype).eps)).any()):
                break
            t = torch.maximum(t, longer)
        inside = torch.minimum(torch.maximum(t * v, low), high)
        return torch.where(too_long, inside, clipped).reshape(x.shape)

    def pick(self, keep: Tensor, dim: int) -> FeasibleSet:
        return L2BallInBox(self.radius, _picked(self.low, keep, dim), _picked(self.high, keep, dim))


@dataclass(frozen=True)
class Intersection(FeasibleSet):
    """The points that lie in all of several sets, projected by Dykstra's algorithm.

    Dykstra's iterates converge to the nearest point (Boyle and Dykstra 1986); a last round of plain alternating
    projections takes away what is left outside. The sets must have a point in common.

    Args:
        sets: at least one.
        sweeps: the most sweeps over all sets.
        tol: a sample is done when a sweep moves it by less than ``tol`` of its norm plus one.

    Raises:
        ProblemError: no set given, or the sets are found to have no point in common.
    """

    sets: tuple[FeasibleSet, ...]
    sweeps: int = 1000
    tol: float = 1e-7

    def __post_init__(self) -> None:
        if not self.sets:
            raise ProblemError("Intersection needs at least one set")

    def project(self, x: Tensor) -> Tensor:
        point = x
        corrections = [torch.zeros_like(x) for _ in self.sets]
        for _ in range(self.sweeps):
            before = point
            for i, one in enumerate(self.sets):
                shifted = point + corrections[i]
                point = one.project(shifted)
                corrections[i] = shifted - point
            if self._settled(point, before):
                break
        return self._alternate(point)

    def pick(self, keep: Tensor, dim: int) -> FeasibleSet | None:
        sets = tuple(one for one in (part.pick(keep, dim) for part in self.sets) if one is not None)
        return replace(self, sets=sets) if len(sets) == len(self.sets) else None

    def _alternate(self, point: Tensor) -> Tensor:
        for _ in range(self.sweeps):
            before = point
            for one in self.sets:
                point = one.project(point)
            if self._settled(point, before):
                break
        scale = 1e-4 * (1 + point.flatten(1).norm(dim=1))
        if any(bool((one.distance(point) > scale).any()) for one in self.sets):
            raise ProblemError("Intersection: the sets have no point in common, at least for one sample")
        return point

    def _settled(self, point: Tensor, before: Tensor) -> bool:
        moved = (point - before).flatten(1).norm(dim=1)
        tol = max(self.tol, 4 * torch.finfo(point.dtype).eps)
        return not bool((moved > tol * (1 + point.flatten(1).norm(dim=1))).any())


def _like(value: float | Tensor, x: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=x.dtype, device=x.device)


def _picked(value: Any, keep: Tensor, dim: int) -> Any:
    """The samples of a tensor that has one entry a sample; what all samples share stays."""
    own = isinstance(value, Tensor) and value.dim() == dim and value.shape[0] == keep.shape[0]
    return value[keep] if own else value
