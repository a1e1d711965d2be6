"""The points that lie in all of several sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.feasible.base import FeasibleSet
from deqopt.feasible.dykstra import dykstra
from deqopt.feasible.sets import Box, Everywhere, L2Ball, L2BallInBox, LinfBall, clip
from deqopt.feasible.within_ball import NO_COMMON_POINT, TOUCHING, within_ball

Projection = Callable[[Tensor], Tensor]

MOST_BALLS = 2
"""Searches for the multipliers of several balls are nested, so the iteration handles more balls than this."""


@dataclass(frozen=True)
class Intersection(FeasibleSet):
    """The points that lie in all of several sets. The sets must have a point in common.

    All boxes and all balls in the maximum norm are combined into one box. For one or two Euclidean balls and at most
    one other set (a box, or any set), the nearest point is exact up to rounding: see
    :func:`deqopt.feasible.within_ball.within_ball`. More sets need an iteration, which warns if it does not find the
    nearest point: see :func:`deqopt.feasible.dykstra.dykstra`.

    Args:
        sets: feasible sets, at least one.
        sweeps: largest number of sweeps of the iteration over all sets.
        tol: tolerance of the iteration: a sample is done once a sweep moves its point and corrections by less than
            ``tol`` times their size.

    Raises:
        ProblemError: no set is given, or the sets have no point in common.

    Example:
        >>> import torch
        >>> from deqopt.feasible import Box, Intersection, L2Ball
        >>> near = Intersection((L2Ball(radius=1.0), Box(low=0.0, high=0.5)))
        >>> near.project(torch.tensor([[3.0, 0.1]]))
        tensor([[0.5000, 0.1000]])
    """

    sets: tuple[FeasibleSet, ...]
    sweeps: int = 1000
    tol: float = 1e-9

    def __post_init__(self) -> None:
        if not self.sets:
            raise ProblemError("Intersection needs at least one set")
        strange = [one for one in self.sets if not isinstance(one, FeasibleSet)]
        if strange:
            raise ProblemError(f"Intersection takes feasible sets, such as Box(0.0, 1.0), got {strange[0]!r}")

    def project(self, x: Tensor) -> Tensor:
        parts = _parts(self.sets)
        boxes = [one for one in parts if type(one) in (Box, LinfBall)]
        balls = [one for one in parts if type(one) is L2Ball]
        others = [one for one in parts if type(one) not in (Box, LinfBall, L2Ball)]
        projections: list[Projection] = [one.project for one in others]
        if boxes:
            low, high = _common_box(boxes, x)
            projections.insert(0, lambda point: clip(point, low, high))
        if len(projections) > 1 or len(balls) > MOST_BALLS:
            return dykstra([*projections, *(ball.project for ball in balls)], x, self.sweeps, self.tol)
        project = projections[0] if projections else _same
        for ball in balls:
            project = partial(within_ball, project, center=ball.center_of(x).expand_as(x), radius=ball.radius_of(x))
        return project(x)


def _parts(sets: tuple[FeasibleSet, ...]) -> list[FeasibleSet]:
    """The basic sets that these sets are made of. Subclasses stay whole, because they may project differently."""
    parts: list[FeasibleSet] = []
    for one in sets:
        if type(one) is Intersection:
            parts += _parts(one.sets)
        elif type(one) is L2BallInBox:
            parts += [L2Ball(one.radius), Box(one.low, one.high)]
        elif type(one) is not Everywhere:
            parts.append(one)
    return parts


def _common_box(boxes: list[FeasibleSet], x: Tensor) -> tuple[Tensor, Tensor]:
    """The bounds of the box that boxes and balls in the maximum norm have in common."""
    lows, highs = zip(*(_bounds(one, x) for one in boxes), strict=True)
    low, high = lows[0], highs[0]
    for other in lows[1:]:
        low = torch.maximum(low, other)
    for other in highs[1:]:
        high = torch.minimum(high, other)
    if bool((low - high > TOUCHING * (low.abs() + high.abs())).any()):
        raise ProblemError(f"Intersection: {NO_COMMON_POINT}")
    return low, high


def _bounds(one: FeasibleSet, x: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(one, Box):
        return one.bounds_of(x)
    assert isinstance(one, LinfBall)
    center, radius = one.center_of(x), one.radius_of(x)
    return center - radius, center + radius


def _same(point: Tensor) -> Tensor:
    return point
