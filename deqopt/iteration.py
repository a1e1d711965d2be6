"""The one loop: budget, per-sample stopping, best iterate, non-finite values, trace. Every solver is only a step.

A point is a matrix ``w`` of shape (B, width), one row a sample. The loop evaluates it, decides for every row whether
it is finished, and asks the step for the next one. A finished row is frozen: nothing moves it any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from deqopt.errors import ProblemError


class Status(IntEnum):
    """How the solve of a sample ended. ``status.message`` says what it means and what to do."""

    message: str

    CONVERGED = 0, "the residual is below the tolerance"
    OUT_OF_BUDGET = (
        1,
        "the budget ended before the tolerance was reached: raise max_nfe or tol if the residual is too large",
    )
    DIVERGED = (
        2,
        "the iterates grew without bound; the best one before is returned: use a smaller step size, "
        "or train with a Jacobian penalty so that the cell is contractive",
    )
    NON_FINITE = 3, "the start itself is NaN or infinite: check the data of this sample and the weights"

    def __new__(cls, value: int, message: str) -> Status:
        member = int.__new__(cls, value)
        member._value_ = value
        member.message = message
        return member

    @classmethod
    def of(cls, value: Tensor | int) -> Status:
        """The status that an entry of ``eq.status`` stands for."""
        return next(member for member in cls if member == int(value))


class Measured(Protocol):
    """What the loop must know of an evaluated point: (B,) each."""

    @property
    def residual(self) -> Tensor:
        """By which convergence is judged."""

    @property
    def merit(self) -> Tensor:
        """By which iterates are ranked, the lowest best: the objective plus what being off the equilibrium may hide."""

    @property
    def objective(self) -> Tensor:
        """What is reported of the point."""


E = TypeVar("E", bound=Measured)


@dataclass(frozen=True)
class Trace:
    """Objective and residual after every evaluation, (evaluations, B) each; a frozen sample repeats its last."""

    objective: Tensor
    residual: Tensor


@dataclass(frozen=True)
class Outcome:
    """What the loop returns: the best point of every row, (B, width), and how its solve went, (B,) each."""

    w: Tensor
    objective: Tensor
    residual: Tensor
    status: Tensor
    nfe: Tensor
    trace: Trace | None
    visited: Tensor


# An iterate this many times larger than the start (plus one) has left every sensible region.
BLOW_UP = 1e8


def iterate(
    evaluate: Callable[[Tensor], E],
    step: Callable[[Tensor, E], Tensor],
    w: Tensor,
    *,
    max_nfe: int,
    tol: float,
    record: bool = False,
    visits: int = 0,
) -> Outcome:
    """Repeat ``w = step(w, evaluate(w))`` until every row has converged, diverged or spent its budget.

    Of every row the best iterate is kept: the one of the lowest merit, and a converged one before all others.

    Args:
        evaluate: (B, width) to a measured evaluation; one call is one evaluation (NFE).
        step: the solver: point and evaluation to the next point. Must not couple rows.
        w: the start, (B, width).
        max_nfe: the budget in evaluations.
        tol: a row has converged once its residual is at most this.
        record: keep a :class:`Trace`.
        visits: how many of the points that were evaluated to keep, drawn at random (reservoir sampling); a diverged
            row is kept at its best point.
    """
    batch = w.shape[0]
    limit = BLOW_UP * (1 + w.norm(dim=1))
    best = w.clone()
    best_residual = torch.full((batch,), torch.inf, device=w.device, dtype=w.dtype)
    best_objective = best_residual.clone()
    lowest = best_residual.clone()
    status = torch.full((batch,), int(Status.OUT_OF_BUDGET), device=w.device)
    active = torch.ones(batch, dtype=torch.bool, device=w.device)
    nfe = torch.zeros(batch, dtype=torch.long, device=w.device)
    history: list[tuple[Tensor, Tensor]] = []
    reservoir: list[Tensor] = []

    for k in range(max_nfe):
        evaluation = evaluate(w)
        residual, merit, objective = evaluation.residual, evaluation.merit, evaluation.objective
        nfe += active
        if record:
            history.append((objective, residual))
        sane = residual.isfinite() & merit.isfinite() & objective.isfinite() & (w.norm(dim=1) <= limit)
        converged = active & sane & (residual <= tol)
        keep = active & sane & (merit < lowest) | converged
        best = torch.where(keep[:, None], w, best)
        best_residual = torch.where(keep, residual, best_residual)
        best_objective = torch.where(keep, objective, best_objective)
        lowest = torch.where(keep, merit, lowest)

        if visits:
            slot = k if k < visits else int(torch.randint(k + 1, ()))
            if slot < visits:
                reservoir[slot : slot + 1] = [torch.where(sane[:, None], w, best)]
        lost = active & ~sane
        status[converged] = int(Status.CONVERGED)
        status[lost] = int(Status.NON_FINITE if k == 0 else Status.DIVERGED)
        active = active & ~converged & ~lost
        if k + 1 == max_nfe or not bool(active.any()):
            break
        w = torch.where(active[:, None], step(w, evaluation), w)

    trace = Trace(*(torch.stack(column) for column in zip(*history, strict=True))) if record else None
    visited = torch.stack(reservoir) if reservoir else w.new_empty(0, *w.shape)
    return Outcome(best, best_objective, best_residual, status, nfe, trace, visited)


def relative_residual(target: Tensor, w: Tensor) -> Tensor:
    """``|T(w) - w| / |T(w)|`` a row, (B,), with a floor on the denominator for targets that vanish."""
    floor = torch.finfo(w.dtype).eps * w.shape[1] ** 0.5
    return (target - w).norm(dim=1) / target.norm(dim=1).clamp_min(floor)


def check_budget(max_nfe: int, tol: float) -> None:
    """Raise ProblemError for a budget or a tolerance that cannot be meant."""
    if max_nfe < 1:
        raise ProblemError(f"max_nfe must be at least 1, got {max_nfe}")
    if not tol >= 0:
        raise ProblemError(f"tol must be 0 or larger, got {tol}")
