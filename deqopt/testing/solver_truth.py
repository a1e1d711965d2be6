"""Clauses on what a solver may claim: an objective, a status and a gradient that need no checking."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from deqopt.adjoints import Unrolled
from deqopt.errors import ProblemError
from deqopt.loop_settings import Norm
from deqopt.state import State
from deqopt.testing.problems import ALL, BALL, BOX, DATA, LINEAR, TANH, TUPLE, Case, Family
from deqopt.testing.report import Inapplicable, clauses_of
from deqopt.testing.trial import STEPS, Trial, gradients_of_steps, is_finite, solve

BUDGETS = (16, 40, 100, 250)
UNITS_OF_J = (1e-12, 1e-4, 1e8)
SHIFT = 1000.0
# Of what the optimum gains over the start: by how much an objective may be off, or a larger budget worse.
CLOSE = 0.03
# How far from the solution a sample may be that has converged, relative to the size of x plus one.
NEAR = {torch.float64: 1e-3, torch.float32: 1e-2}
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


def the_objective_is_that_of_the_input(trial: Trial) -> Iterator[str]:
    """The objective is about J at the exact equilibrium of x, or eq.state_lag says that it was measured off it, where J
    is zero at the start, for z0 is the target. And such a start is left."""
    case = trial.case(DATA)
    assert isinstance(case.z0, Tensor)
    case = replace(case, z0=case.problem.data["target"].reshape(case.z0.shape))
    start = case.value(case.x0)
    for budget in BUDGETS:
        solver = trial.within(budget)
        if solver is None:
            continue
        found = solve(solver, case)
        exact, gain = case.value(found.x), start - case.objective
        hidden = (exact - found.objective) / gain
        lag = torch.zeros_like(hidden) if found.state_lag is None else found.state_lag
        silent = (hidden > CLOSE) & ~(lag > 0.1)
        if silent.any():
            worst = int(torch.where(silent, hidden, -torch.inf).argmax())
            yield (
                f"z0 at the target, max_nfe={solver.max_nfe}: sample {worst} reports an objective of "
                f"{found.objective[worst]:.4g}, but J at the equilibrium of its x is {exact[worst]:.4g}, and its lag "
                f"is only {lag[worst]:.1e}"
            )
        if budget >= 100 and ((exact - start) > -CLOSE * gain).any():
            worst = int((exact - start).argmax())
            yield (
                f"z0 at the target, max_nfe={solver.max_nfe}: sample {worst} ends at an x no better than the first "
                f"({exact[worst]:.4g} against {start[worst]:.4g})"
            )


def more_budget_is_never_worse(trial: Trial) -> Iterator[str]:
    """With twice the budget or more the objective at the equilibrium of x is at most as large, up to the tolerance."""
    for family in (LINEAR, BALL, TANH):
        case = trial.case(family)
        gain, best, at = case.value(case.x0) - case.objective, torch.inf * case.objective, 0
        for solver in filter(None, map(trial.within, BUDGETS)):
            if solver.max_nfe < 2 * at:  # its own budget ends here
                continue
            value = case.value(solve(solver, case).x)
            lost = (value - best) / gain
            if (lost > CLOSE).any():
                worst = int(lost.argmax())
                yield (
                    f"{case.name}: sample {worst} ends at {value[worst]:.4g} with max_nfe={solver.max_nfe}, although "
                    f"{best[worst]:.4g} was reached with {at}"
                )
            best, at = torch.minimum(best, value), solver.max_nfe


def converged_is_solved(trial: Trial) -> Iterator[str]:
    """What is CONVERGED is at the solution, in any units of J, wherever x lies, in either norm and precision."""
    for case, norm in _variants(trial):
        dtype = case.x.dtype
        found = solve(replace(trial.solver, tol=TOLERANCE[dtype], atol=0.0, norm=norm), case)
        off = (found.x.double() - case.x.double()).flatten(1).norm(dim=1)
        off = off / (1 + (case.x - case.x0).double().flatten(1).norm(dim=1))
        false = found.converged & ~(off <= NEAR[dtype])
        if false.any():
            worst = int(torch.where(false, off, -torch.inf).argmax())
            yield (
                f"{case.name}, {norm.name}, {str(dtype).removeprefix('torch.')}: sample {worst} is CONVERGED with a "
                f"residual of {found.residual[worst]:.1e}, {off[worst]:.1e} away from the solution"
            )


def single_precision_has_gradients(trial: Trial) -> Iterator[str]:
    """A gradient through the solve is finite in float32 wherever it is in float64, also from a start of zeros."""
    solver = trial.within(STEPS) or trial.short
    for family in (LINEAR, BOX, TUPLE):
        finite = {}
        for dtype in (torch.float64, torch.float32):
            case = trial.case(family, dtype=dtype)
            try:
                found = solve(solver, case, adjoint=Unrolled())
            except ProblemError as refusal:
                raise Inapplicable(str(refusal)) from refusal
            loss = found.x.square().sum() + found.objective.sum()
            finite[dtype] = is_finite(gradients_of_steps(loss, case.theta))
        if finite[torch.float64] and not finite[torch.float32]:
            yield f"{family.name}: the gradient to theta through {solver.max_nfe} evaluations is NaN or infinite"


def _variants(trial: Trial) -> Iterator[tuple[Case, Norm]]:
    yield _in_all_units(trial, LINEAR, torch.float64), Norm.L2
    yield _in_all_units(trial, BALL, torch.float32), Norm.L2
    yield trial.case(BALL), Norm.LINF
    yield trial.case(LINEAR), Norm.LINF
    yield _shifted(trial.case(DATA)), Norm.L2
    yield _shifted(trial.case(LINEAR)), Norm.L2


def _in_all_units(trial: Trial, family: Family, dtype: torch.dtype) -> Case:
    """All samples in all units of J, which change nothing else, in one batch."""
    case = trial.case(family, ALL * len(UNITS_OF_J), dtype)
    units = torch.tensor(UNITS_OF_J, dtype=dtype, device=trial.device).repeat_interleave(len(ALL))

    def objective(z: State, x: Tensor) -> Tensor:
        return units * case.problem.objective(z, x)

    name = f"{case.name}, {len(ALL)} samples each with J times {', '.join(map('{:g}'.format, UNITS_OF_J))}"
    return replace(case, name=name, problem=replace(case.problem, objective=objective))


def _shifted(case: Case) -> Case:
    """The same problem in ``x + SHIFT``."""
    inner = case.problem
    feasible = inner.feasible
    if case.problem.data is not None:  # balls around centres of their own
        feasible = replace(feasible, center=feasible.center + SHIFT)  # type: ignore[type-var, attr-defined]

    def cell(z: State, x: Tensor, *data: object) -> State:
        return inner.cell(z, x - SHIFT, *data)

    def objective(z: State, x: Tensor, *data: object) -> Tensor:
        return inner.objective(z, x - SHIFT, *data)

    problem = replace(inner, cell=cell, objective=objective, feasible=feasible)
    return replace(case, name=f"{case.name}, x around {SHIFT:g}", problem=problem, x0=case.x0 + SHIFT, x=case.x + SHIFT)


CLAUSES = clauses_of(__name__)
