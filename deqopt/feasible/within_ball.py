"""The projection onto the intersection of a ball and any other set, computed from the projection onto that set."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.feasible.base import largest, length

NO_COMMON_POINT = "the sets have no point in common, at least for one sample"
# Sets count as touching if the gap between them, relative to their position, may be due to rounding in float32.
TOUCHING = 2e-6
MOST = 200


def within_ball(project: Callable[[Tensor], Tensor], x: Tensor, center: Tensor, radius: Tensor) -> Tensor:
    """The point u nearest to x, (B, *input), among the points of a set C with ``|u - center|_2 <= radius``.

    It is ``u(t) = Proj_C(center + t (x - center))`` with the largest t in [0, 1] for which u is in the ball: ``1 / t -
    1`` is the multiplier of ``|u - center|^2 <= radius^2``. Only the number t is searched for. ``|u(t) - center|`` does
    not decrease with t, so t is found for any C, up to rounding, even if the ball and C nearly touch: see
    :func:`_searched`. The result is twice differentiable in x, center, radius and everything that ``project`` depends
    on.

    Args:
        project: projection onto C, which must be closed and convex, sample by sample.
        center: centre of the ball, shaped like x.
        radius: radius, not negative; broadcasts to x: () or (B, 1, ...).

    Raises:
        ProblemError: the ball and C have no point in common, for at least one sample.
    """
    radii = radius.expand(len(x), *[1] * (x.dim() - 1)).flatten()
    offset = x - center
    unit = largest(offset)
    direction = offset / unit
    whole = project(x)
    with torch.no_grad():
        beyond = length(whole - center) > radii * (1 + 2 * torch.finfo(x.dtype).eps)
        if not bool(beyond.any()):
            return whole
        reach = _searched(project, center, direction, radii, unit.flatten(), length(whole - center), beyond)

    def at(steps: Tensor) -> Tensor:
        moved = center + steps.reshape(unit.shape) * direction
        return project(torch.where(beyond.reshape(unit.shape), moved, x))

    point = at(reach)
    if not torch.is_grad_enabled() or not (point.requires_grad or radius.requires_grad):
        return point
    # Two Newton steps from the solution: their first and second derivatives are those of the solution.
    for _ in range(2):
        reach = reach.requires_grad_()
        distance = length(at(reach) - center)
        (slope,) = torch.autograd.grad(distance.sum(), reach, create_graph=True)
        moving = beyond & (slope > 0)
        reach = reach - torch.where(moving, (distance - radii) / torch.where(moving, slope, 1), 0)
    return at(reach)


def _searched(
    project: Callable[[Tensor], Tensor],
    center: Tensor,
    direction: Tensor,
    radius: Tensor,
    longest: Tensor,
    farthest: Tensor,
    active: Tensor,
) -> Tensor:
    """(B,) the s in [0, longest] with ``|Proj_C(center + s direction) - center| = radius`` for ``active`` samples.

    The search uses secants of the squared distance as a function of s^2, and keeps the root between two ends (the
    Illinois method). The secant is exact if C is a box and its clipped entries are known. Every fourth step halves the
    interval instead, in the logarithm.

    Args:
        farthest: the distance at ``longest``.
    """
    eps = torch.finfo(center.dtype).eps
    per_sample = (-1, *[1] * (center.dim() - 1))
    nearest = length(project(center) - center)
    far_away = TOUCHING * (nearest + radius + length(center))
    if bool((active & (nearest > radius + far_away)).any()):
        raise ProblemError(f"Intersection: {NO_COMMON_POINT}")

    def excess(square: Tensor) -> Tensor:
        moved = center + square.sqrt().to(center.dtype).reshape(per_sample) * direction
        return (length(project(moved) - center).double() / scale).square() - 1

    scale = torch.where(radius > 0, radius, 1).double()
    low = ((radius - nearest).double() / length(direction).double()).clamp_min(0).square()
    active = active & (radius > 0) & (low > 0)  # otherwise they touch: s is 0
    found, high = low, longest.double().square()
    above = (farthest.double() / scale).square() - 1
    below = excess(low)
    active = active & (below < -8 * eps)
    was_over = active.logical_not()
    growth, open_end = torch.full_like(low, 2), active
    for k in range(MOST):
        if not bool(active.any()):
            break
        secant = (low * above - high * below) / (above - below)
        halfway = torch.where(high > 4 * low, (low * high).sqrt(), (low + high) / 2)
        further = low / (1 + below) * growth
        middle = torch.where(open_end, further, halfway if k % 4 == 3 else secant)
        middle = torch.where((middle > low) & (middle < high), middle, halfway)
        value = excess(middle)
        over = value > 0
        found = torch.where(active, torch.where(over & (value > 8 * eps), low, middle), found)
        high, low = torch.where(over, middle, high), torch.where(over, low, middle)
        # Illinois: the value at an end that stays twice is halved, so that the end moves again.
        again = torch.where((over == was_over) & ~open_end, 0.5, 1.0)
        above, below = torch.where(over, value, above * again), torch.where(over, below * again, value)
        was_over, open_end, growth = over, open_end & ~over, growth.square()
        active = active & (value.abs() > 8 * eps) & (high - low > eps * high)
    return found.sqrt().to(center.dtype)
