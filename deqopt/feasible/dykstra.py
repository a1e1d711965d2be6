"""The projection onto the intersection of any sets: Dykstra's algorithm, accelerated, with a bound on its error."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.feasible.base import length
from deqopt.feasible.within_ball import NO_COMMON_POINT

Projection = Callable[[Tensor], Tensor]

MEMORY = 10
"""The number of sweeps that Anderson mixing remembers."""
RIDGE = 1e-12
APART, AT_REST = 1e-4, 1e-3
"""Sets count as having no point in common if projecting onto them in turn comes to rest outside of one of them: moves
are shorter than ``AT_REST`` times the remaining distance, and this distance is above ``APART`` (1 + norm)."""


def dykstra(projections: Sequence[Projection], x: Tensor, sweeps: int, tol: float) -> Tensor:
    """The nearest point to x, (B, *input), that lies in all sets.

    A sweep of Dykstra's algorithm (Boyle and Dykstra 1986) replaces the corrections c_i, one set after the other,

        y_i = Proj_i(y_(i-1) + c_i),    c_i <- y_(i-1) + c_i - y_i,    y_0 = x - c_1 - c_2 - ...

    and raises the dual objective ``D = <x, c> - |c|^2 / 2 - sum_i <c_i, y_i>``, where c is the sum of all corrections.
    Anderson mixing proposes new corrections; a proposal that lowers D is replaced by the plain sweep. When all y_i are
    one point u, ``D = |u - x|^2 / 2`` and u is the nearest point. For any u in the intersection, ``sqrt(2 sum_i
    <c_i, y_i - u>)`` bounds its distance to the nearest point.

    The derivative is that of the nearest point: the same iteration with the derivatives of the projections. The result
    can be differentiated once.

    Args:
        sweeps: largest number of sweeps. If they do not suffice, a warning bounds the error of a point.
        tol: tolerance: a sample is done when a sweep moves its point and its corrections by less than ``tol``, and the
            bound is less than the square root of ``tol``, both relative to the sizes of x and its image.

    Raises:
        ProblemError: the sets are found to have no point in common.
    """
    with torch.no_grad():
        found = _settled(projections, x.detach(), sweeps, tol, share=1.0)
        point = _inside(projections, found, sweeps)
    if not torch.is_grad_enabled():
        return point
    images = [project(shifted) for project, shifted in zip(projections, found.shifted, strict=True)]
    return _Nearest.apply(projections, found.shifted, sweeps, tol, point, x, *images)


@dataclass(frozen=True)
class _Found:
    """The result of the sweeps: tensors (B, *input), one per set.

    Attributes:
        shifted: the projected points.
        images: y_i, the projections.
        corrections: c_i, the differences of ``shifted`` and ``images``.
        unsettled: (B,) whether the last sweep still moved a sample.
    """

    shifted: list[Tensor]
    images: list[Tensor]
    corrections: list[Tensor]
    unsettled: Tensor


def _settled(maps: Sequence[Projection], x: Tensor, sweeps: int, tol: float, share: float) -> _Found:
    """Sweep until every sample has settled independently.

    Args:
        maps: projections, or their derivatives, which are symmetric with eigenvalues between 0 and 1.
        share: factor of ``<c_i, y_i>`` in D: 1 for projections, 1/2 for linear maps.
    """
    width = x[0].numel() if len(x) else 0
    rows = x.new_zeros(len(x), width * (len(maps) - 1))  # corrections of all sets except the first, which needs none
    size = length(x) + length(maps[0](x))
    tol = max(tol, 8 * torch.finfo(x.dtype).eps)
    rounding = 4 * torch.finfo(x.dtype).eps * size.double().square()
    active = torch.ones(len(x), dtype=torch.bool, device=x.device)
    highest = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
    kept, mixing = rows, _Mixing(rows)
    for _ in range(sweeps):
        swept, dual, (_, images, corrections) = _sweep(maps, x, rows, share)
        raised = dual >= highest - rounding
        residual = (swept - rows).norm(dim=1)
        done = raised & (residual <= tol * size) & (_bound(images, corrections, images[-1]) <= tol**0.5 * size)
        active = active & ~done & residual.isfinite()
        kept = torch.where(raised[:, None], swept, kept)
        highest = torch.where(raised, torch.maximum(dual, highest), highest)
        if not bool(active.any()):
            break
        proposal = mixing.proposal(rows, swept, raised)
        rows = torch.where((active & proposal.isfinite().all(1))[:, None], proposal, kept)
    _, _, found = _sweep(maps, x, kept, share)
    return _Found(*found, active)


def _sweep(
    maps: Sequence[Projection], x: Tensor, rows: Tensor, share: float
) -> tuple[Tensor, Tensor, tuple[list[Tensor], list[Tensor], list[Tensor]]]:
    """The next corrections in rows, D before rounding, and shifted points, images and corrections of all sets."""
    given = [part.reshape(x.shape) for part in rows.split(max(x[0].numel(), 1), dim=1)]
    at = x - torch.stack(given).sum(0)
    shifted, images, corrections = [], [], []
    for one, correction in zip(maps, [torch.zeros_like(x), *given], strict=True):
        shifted.append(at + correction)
        at = one(shifted[-1])
        images.append(at)
        corrections.append(shifted[-1] - at)
    total = torch.stack(corrections).sum(0)
    supports = torch.stack([_inner(c, y) for c, y in zip(corrections, images, strict=True)]).sum(0)
    dual = _inner(x, total) - _inner(total, total) / 2 - share * supports
    return torch.cat([c.flatten(1) for c in corrections[1:]], 1), dual, (shifted, images, corrections)


class _Mixing:
    """Anderson mixing, type II, of rows (B, width), independently for each row."""

    def __init__(self, rows: Tensor) -> None:
        self._residuals = rows.new_zeros(len(rows), MEMORY, rows.shape[1])
        self._images = torch.zeros_like(self._residuals)
        self._last: tuple[Tensor, Tensor] = (torch.zeros_like(rows), torch.zeros_like(rows))
        self._seen, self._count = rows.new_zeros(len(rows), 1), 0
        self._trust = torch.ones_like(self._seen)

    def proposal(self, rows: Tensor, images: Tensor, accepted: Tensor) -> Tensor:
        """The next proposal after ``images``, from the remembered differences.

        A row is not ``accepted``, (B,), if its last proposal went too far. It is then not remembered, and the
        correction in the next proposal is divided by four. Every accepted proposal multiplies the correction by four
        again, up to its full length.
        """
        now, before, keep = (images - rows, images), self._last, accepted[:, None]
        slot, self._count = self._count % MEMORY, self._count + 1
        for memory, new, old in zip((self._residuals, self._images), now, before, strict=True):
            memory[:, slot] = torch.where(keep, (new - old) * self._seen, 0)
        self._last = (torch.where(keep, now[0], before[0]), torch.where(keep, now[1], before[1]))
        self._seen = torch.where(keep, 1, self._seen)
        self._trust = torch.where(keep, 4 * self._trust, self._trust / 4).clamp_max(1)
        lengths = self._residuals.norm(dim=2, keepdim=True).double()
        inverse = torch.where(lengths > 0, 1 / lengths, 0)
        columns = self._residuals.double() * inverse
        eye = torch.eye(MEMORY, dtype=torch.float64, device=rows.device)
        right = columns @ self._last[0].double().unsqueeze(2)
        share, _ = torch.linalg.solve_ex(columns @ columns.mT + RIDGE * eye, right)
        return self._last[1] - self._trust * ((share * inverse).to(rows.dtype).mT @ self._images).squeeze(1)


def _inside(projections: Sequence[Projection], found: _Found, sweeps: int) -> Tensor:
    """The points of the sweeps, projected in turn until each is in all sets; warns of samples that had not settled."""
    point, moving = found.images[-1], torch.ones_like(found.unsettled)
    moved, eps = length(torch.zeros_like(point)), torch.finfo(point.dtype).eps
    for _ in range(sweeps):
        turned = point
        for project in projections:
            turned = project(turned)
        moved = torch.where(moving, length(turned - point), moved)
        point = torch.where(moving.reshape(-1, *[1] * (point.dim() - 1)), turned, point)
        moving = moving & (moved > 4 * eps * length(point))
        if not bool(moving.any()):
            break
    unsettled = found.unsettled
    if not bool(unsettled.any()):
        return point
    outside = torch.stack([length(point - project(point)) for project in projections]).amax(0)
    if bool((unsettled & (outside > APART * (1 + length(point))) & (moved < AT_REST * outside)).any()):
        raise ProblemError(f"Intersection: {NO_COMMON_POINT}")
    error = _bound(found.images, found.corrections, point)[unsettled].max()
    warnings.warn(
        f"Intersection: {int(unsettled.sum())} of {len(point)} samples are not projected to tolerance after {sweeps} "
        f"sweeps: up to {float(error):.1e} away from the nearest point, and up to "
        f"{float(outside[unsettled].max()):.1e} outside of a set: raise sweeps, or tol",
        stacklevel=4,
    )
    return point


def _bound(images: Sequence[Tensor], corrections: Sequence[Tensor], point: Tensor) -> Tensor:
    """(B,) a bound of the distance from a point of the intersection to the nearest point, in double precision."""
    pairs = zip(corrections, images, strict=True)
    return (2 * torch.stack([_inner(c, y - point).abs() for c, y in pairs]).sum(0)).sqrt()


class _Nearest(torch.autograd.Function):
    """The point that was found; its backward pass solves for the derivative of the nearest point.

    The backward pass sweeps with the derivatives J_i of the projections at the projected points, from x = v, the
    cotangent of the point. The sweeps converge to y, the cotangent of x, and to ``y + c_i``, the cotangent of
    ``Proj_i(shifted_i)``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        projections: Sequence[Projection],
        shifted: Sequence[Tensor],
        sweeps: int,
        tol: float,
        point: Tensor,
        x: Tensor,
        *images: Tensor,
    ) -> Tensor:
        ctx.projections, ctx.shifted, ctx.settings = projections, shifted, (sweeps, tol)
        return point.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise ProblemError(
                "the projection onto an Intersection of these sets can be differentiated only once: leave out "
                "create_graph=True"
            )
        sweeps, tol = ctx.settings
        maps = [_derivative(project, at) for project, at in zip(ctx.projections, ctx.shifted, strict=True)]
        found = _settled(maps, cotangent, sweeps, tol, share=0.5)
        if bool(found.unsettled.any()):
            warnings.warn(
                f"Intersection: the derivative of the projection of {int(found.unsettled.sum())} of {len(cotangent)} "
                f"samples was not found within {sweeps} sweeps: raise sweeps, or tol",
                stacklevel=2,
            )
        return None, None, None, None, None, found.images[-1], *found.shifted


def _derivative(project: Projection, at: Tensor) -> Projection:
    """The derivative of a projection at a point. It is symmetric, so one pull-back gives its product with a vector."""
    with torch.enable_grad():
        leaf = at.detach().requires_grad_()
        image = project(leaf)
    if not image.requires_grad:
        return torch.zeros_like
    return lambda rows: torch.autograd.grad(image, leaf, rows, retain_graph=True, materialize_grads=True)[0]


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """(B,) inner products, in double precision."""
    return (a.double() * b.double()).flatten(1).sum(1)
