"""The one loop: budget, per-sample stopping, best iterate, restarts, compaction, trace. Every solver is only a step.

A point is a matrix ``w`` of shape (B, width), with one row per sample. The loop evaluates it, decides for every row
whether it is finished, and asks the step for the next point. A finished row is frozen: it does not move any more. Once
enough rows are finished, they leave the batch, if the system can be restricted to a part of its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from deqopt.batch import pick
from deqopt.loop_settings import LoopSettings
from deqopt.memory import Memory
from deqopt.state import known_all


class Status(IntEnum):
    """How the solve of a sample ended. ``status.message`` explains the status and what to do."""

    message: str

    CONVERGED = 0, "the residual is below the tolerance"
    OUT_OF_BUDGET = (
        1,
        "the budget ended before the tolerance was reached: raise max_nfe or tol if the residual is too large",
    )
    DIVERGED = (
        2,
        "the iterates grew without bound or became NaN; the best one is returned: use a smaller step size, "
        "or train with a Jacobian penalty so that the cell is contractive",
    )
    NON_FINITE = 3, "the start itself is NaN or infinite: check the data of this sample and the weights"
    TRAPPED = (
        4,
        "it settled at a stationary point that is worse than an iterate before it, such as a saddle or a maximum; "
        "that iterate is returned: use SecantTracking, a smaller step size, or another start",
    )

    def __new__(cls, value: int, message: str) -> Status:
        member = int.__new__(cls, value)
        member._value_ = value
        member.message = message
        return member

    @classmethod
    def of(cls, value: Tensor | int) -> Status:
        """The status that an entry of ``eq.status`` stands for."""
        return next(member for member in cls if member == int(value))


@dataclass(frozen=True)
class Measured:
    """An evaluation: the point and its image, (B, width) each, and the measures that the loop needs, (B,) each.

    Attributes:
        point: the rows that were evaluated.
        image: the value that the point has at a solution, or the known part of that value.
        residual: the residual that decides about convergence.
        objective: the reported value of the point; together with ``distance`` and ``slope`` it ranks points.
        distance: distance of the point from its constraint.
        slope: largest change of the objective per unit of that distance.
        scope: largest change of the objective over the length of the point; a relative error of the point changes the
            objective by about this share of it.
        figures: (B, any number) other values of the returned point that the system needs.
    """

    point: Tensor
    image: Tensor
    residual: Tensor
    objective: Tensor
    distance: Tensor
    slope: Tensor
    scope: Tensor
    figures: Tensor


E = TypeVar("E", bound=Measured, covariant=True)


class System(Protocol[E]):
    """The system of equations that the loop iterates on."""

    def evaluate(self, w: Tensor) -> E:
        """One evaluation at the rows of ``w``; must not couple them."""

    def confirm(self, at: Any, claimed: Tensor) -> Any:
        """The evaluation, after a check of its residual for the rows that seem to have converged, ``claimed``, (B,)."""

    def pick(self, keep: Tensor) -> Any:
        """The same system for the rows where ``keep``, (B,), is true; None if it cannot be restricted to them."""


@dataclass(frozen=True)
class Trace:
    """Objective and residual after every evaluation, (evaluations, B) each; a frozen sample repeats its last values."""

    objective: Tensor
    residual: Tensor


@dataclass(frozen=True)
class Outcome:
    """The result of the loop: the best point of every row, (B, width), with its measures and the end of its solve,
    (B,) each except ``figures``.
    """

    w: Tensor
    objective: Tensor
    residual: Tensor
    distance: Tensor
    slope: Tensor
    figures: Tensor
    status: Tensor
    nfe: Tensor
    trace: Trace | None
    visited: Tensor


# An iterate is lost if it is worse than all earlier ones and this many times larger than the first two (plus one).
BLOW_UP = 1e6
# Or, from the fourth evaluation on, if it is worse by this many times the objective and its change so far.
LEAP = 1e8
# The objective of a converged point is known to this many times its tolerance.
EXPLAINED = 10.0
# The batch is compacted when at most this share of its rows is still moving.
COMPACT_BELOW = 0.75
# On an accelerator, checking whether rows are finished or lost waits for the device, so only every few evaluations.
LOOK_EVERY = 4
# The values that are kept for the returned point.
FOUND = ("objective", "residual", "distance", "slope", "figures", "status", "nfe")


@dataclass(frozen=True)
class _Rows:
    """The progress of the rows that are still in the batch; every tensor has the batch first.

    A row that seems to have converged stays at its point until the loop checks it.
    """

    w: Tensor
    best: Tensor
    residual: Tensor
    objective: Tensor
    distance: Tensor
    slope: Tensor
    figures: Tensor
    worst: Tensor
    status: Tensor
    nfe: Tensor
    restarts: Tensor
    active: Tensor
    waiting: Tensor
    limit: Tensor

    @classmethod
    def at(cls, w: Tensor, restarts: int) -> _Rows:
        infinite, zero = w.new_full((len(w),), torch.inf), w.new_zeros(len(w))
        count = torch.zeros(len(w), dtype=torch.long, device=w.device)
        return cls(
            w=w,
            best=w,
            residual=infinite,
            objective=infinite,
            distance=zero,
            slope=zero,
            figures=w.new_zeros(len(w), 0),
            worst=-infinite,
            status=count + int(Status.OUT_OF_BUDGET),
            nfe=count,
            restarts=count + restarts,
            active=count == 0,
            waiting=count > 0,
            limit=infinite,
        )

    def put(self, where: Tensor, others: _Rows) -> _Rows:
        """These rows with ``others`` at the indices ``where``."""
        return _Rows(**{name: value.index_copy(0, where, getattr(others, name)) for name, value in vars(self).items()})


def iterate(
    system: System[E],
    step: Callable[[Any, Any, Any], Tensor],
    memory: Memory,
    w: Tensor,
    settings: LoopSettings,
    *,
    record: bool = False,
    visits: int = 0,
) -> Outcome:
    """Repeat ``w = step(system, system.evaluate(w), memory)`` until every row has converged, diverged or spent its
    budget.

    For every row, the best iterate is kept: the one with the lowest merit ``objective + slope distance``. The slope of
    a point is only as accurate as its multiplier, and meaningless for a guessed multiplier. So an earlier point is
    ranked by the slope of the later point if that slope is larger. A converged point is returned unless another one was
    better by more than the tolerance explains.

    Args:
        step: the solver: computes the next point from an evaluation. Must not couple rows.
        memory: the memory of the step; it is informed when rows leave or start again.
        w: the start, (B, width).
        record: keep a :class:`Trace`.
        visits: number of evaluated points to keep, drawn at random (reservoir sampling) from all points except the
            start, which is a guess and often singular. A row that has left the batch is kept at its best point.
    """
    everyone = rows = _Rows.at(w, settings.restarts)
    places = torch.arange(len(w), device=w.device)
    history: list[tuple[Tensor, Tensor]] = []
    reservoir: list[Tensor] = []

    for k in range(settings.max_nfe):
        look = looks(k, w.device, settings)
        at = system.evaluate(rows.w)
        if k and look and bool((claimed := rows.active & (at.residual <= settings.tol)).any()):
            at = system.confirm(at, claimed)
        rows, again, sane = _judged(rows, at, memory, settings, look, early=k < 3)
        everyone = everyone if k else rows
        compacted = len(places) < len(everyone.w)
        if record:
            now = (at.objective, at.residual)
            history.append(_spread(now, places, history[-1]) if compacted else now)
        if visits and k:
            slot = k - 1 if k <= visits else int(torch.randint(k, ()))
            if slot < visits:
                point = torch.where(sane[:, None], rows.w, rows.best).detach()
                reservoir[slot : slot + 1] = [everyone.best.detach().index_copy(0, places, point)]
        if k + 1 == settings.max_nfe:
            break
        if look:
            active = int(rows.active.sum())
            if not active:
                break
            smaller = system.pick(rows.active) if active <= COMPACT_BELOW * len(places) else None
            if smaller is not None:
                keep, system = rows.active, smaller
                everyone = everyone.put(places, rows)
                at, again, places, rows = pick((at, again, places, rows), keep)
                memory.pick(keep)
        with torch.autocast(w.device.type, enabled=False):
            after = step(system, at, memory)
        if k == 0:
            rows = replace(rows, limit=BLOW_UP * (1 + rows.w.norm(dim=1) + after.norm(dim=1)).detach())
        rows = _moved(rows, after, memory)
        if look and bool(again.any()):
            memory.restart(again)
            rows = replace(rows, w=torch.where(again[:, None], rows.best, rows.w))

    everyone = everyone.put(places, rows) if len(places) < len(everyone.w) else rows
    found = {name: getattr(everyone, name) for name in FOUND}
    trace = Trace(*(torch.stack(column) for column in zip(*history, strict=True))) if record else None
    visited = torch.stack(reservoir) if reservoir else w.new_empty(0, *w.shape)
    return Outcome(w=everyone.best, **found, trace=trace, visited=visited)


def looks(k: int, device: torch.device, settings: LoopSettings) -> bool:
    """Whether the loop checks after evaluation k which rows are finished or lost."""
    return device.type == "cpu" or k % LOOK_EVERY == 0 or k + 1 == settings.max_nfe


def _judged(
    rows: _Rows, at: Measured, memory: Memory, settings: LoopSettings, look: bool, early: bool
) -> tuple[_Rows, Tensor, Tensor]:
    """The rows after an evaluation; which of them start again from their best point; which had finite values."""
    residual, objective = at.residual.detach(), at.objective
    distance, slope = at.distance.detach(), at.slope.detach()
    merit = objective.detach() + slope * distance
    lowest = rows.objective.detach() + torch.maximum(slope, rows.slope) * rows.distance
    finite = residual.isfinite() & merit.isfinite() & objective.isfinite()
    better, seen = merit < lowest, rows.objective.isfinite()
    leap = rows.worst + LEAP * (rows.worst - lowest + lowest.abs())
    near = (rows.w.detach().norm(dim=1) <= rows.limit) & ((merit <= leap) | (rows.worst <= lowest) | early)
    sane = finite & (near | (merit <= rows.worst))
    none = torch.zeros_like(sane)
    claimed = rows.active & sane & (residual <= settings.tol)
    settled, waiting = (claimed, none) if look else (none, claimed)
    trapped = settled & (merit > lowest + EXPLAINED * settings.tol * at.scope.detach())
    converged = settled & ~trapped
    keep = rows.active & sane & better | converged
    lost = rows.active & ~sane if look else none
    nfe = rows.nfe + (rows.active & ~rows.waiting).long()
    again = (lost & seen | trapped) & (rows.restarts > 0)
    status = rows.status.masked_fill(converged, int(Status.CONVERGED)).masked_fill(trapped, int(Status.TRAPPED))
    status = status.masked_fill(lost & seen, int(Status.DIVERGED))
    status = status.masked_fill(lost & ~seen, int(Status.NON_FINITE))
    first = rows.figures.shape[1] < at.figures.shape[1]
    judged = replace(
        rows,
        best=_where(keep, rows.w, rows.best),
        residual=torch.where(keep, residual, rows.residual),
        objective=torch.where(keep, objective, rows.objective),
        distance=torch.where(keep, distance, rows.distance),
        slope=torch.where(keep, slope, rows.slope),
        worst=torch.where(sane, torch.maximum(merit, rows.worst), rows.worst),
        figures=at.figures if first else _where(keep, at.figures, rows.figures),
        status=status,
        nfe=nfe,
        restarts=rows.restarts - again.long(),
        waiting=waiting,
        active=rows.active & ~converged & (~(lost | trapped) | again) & (nfe + memory.cost <= settings.max_nfe),
    )
    return judged, again, sane


def _moved(rows: _Rows, after: Tensor, memory: Memory) -> _Rows:
    """The moving rows at their next point, with the evaluations that the step spent on them."""
    moving = rows.active & ~rows.waiting
    nfe = rows.nfe if memory.spent is None else rows.nfe + torch.where(moving, memory.spent, 0)
    return replace(rows, w=_where(moving, after, rows.w), nfe=nfe)


def _where(chosen: Tensor, some: Tensor, others: Tensor) -> Tensor:
    """The rows of ``some`` where ``chosen``, (B,), is true, else those of ``others``; avoids the copy on a CPU."""
    if known_all(chosen):
        return some
    return torch.where(chosen[:, None], some, others)


def _spread(now: tuple[Tensor, Tensor], places: Tensor, before: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return before[0].index_copy(0, places, now[0]), before[1].index_copy(0, places, now[1])
