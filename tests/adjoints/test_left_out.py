"""Samples that give no gradient to theta, whatever the adjoint: lost, diverged, or with a loss that has none."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from adjoint_catalogue import ADJOINTS
from catalogue import ALL, CASES, INPUT, STATE, flat, linear, targets, theta_of, zeros
from deqopt import Equilibrium, JointProblem, Status
from deqopt.adjoints import Adjoint, JacobianFree, Phantom, implicit_fixed_point
from deqopt.adjoints.linearised import Linearised
from deqopt.adjoints.stationary import StationaryAdjoint
from deqopt.equilibrium import BackwardReport
from deqopt.fixed_point import Anderson, Damped
from deqopt.solvers import JointAnderson, Tracking

EVERY_ADJOINT = pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
THETA = theta_of(seed=2, gain=0.5)
VICTIM, OTHERS = 2, [0, 1, 3, 4]


def problem(rows: Any, gain: float = 0.0) -> JointProblem:
    """``z = tanh(A z + U x + b) + gain z``: the iterates of a sample of large gain grow without bound."""
    a, u, b = THETA
    gains = torch.zeros(5, 1, dtype=torch.float64)
    gains[VICTIM] = gain
    data = {"y": targets(ALL)[list(rows)], "gain": gains[list(rows)]}
    return JointProblem(
        lambda z, x, data: torch.tanh(z @ a.T + x @ u.T + b) + data["gain"] * z,
        lambda z, x, data: (z - data["y"]).square().sum(1) + 0.5 * x.square().sum(1),
        data=data,
    )


def solved(adjoint: Adjoint, rows: Any = ALL, gain: float = 0.0) -> Equilibrium:
    solver = Tracking(max_nfe=30, tol=0.0, step_size=0.3, restarts=0)
    return solver.solve(problem(rows, gain), zeros(rows, STATE), zeros(rows, INPUT), adjoint=adjoint)


def loss_of(found: Equilibrium) -> Tensor:
    """Of all samples, (B,): what can be differentiated of them."""
    parts = [found.objective]
    parts += [flat(getattr(found, name)).square().sum(1) for name in ("z", "x", "mu") if name not in found.held]
    return torch.stack(parts).sum(0)


def gradients(loss: Tensor, theta: Any = THETA) -> tuple[Tensor, ...]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(ended above|times longer|Neumann series)")
        return torch.autograd.grad(loss, theta, allow_unused=True, materialize_grads=True)


def close(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    assert max(float(one.abs().max()) for one in want) > 1e-3
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@EVERY_ADJOINT
def test_a_sample_whose_solve_diverged_gives_none_and_is_named(adjoint: Adjoint) -> None:
    """Although the loss is of all samples, and what is returned of it is finite."""
    name = type(adjoint).__name__
    with pytest.warns(
        UserWarning, match=f"^{name}: 1 of 5 samples give no gradient, because their solve diverged: use"
    ):
        found = solved(adjoint, gain=60.0)
    assert found.status[VICTIM] == Status.DIVERGED and found.usable.all()
    assert found.differentiable.tolist() == [row != VICTIM for row in ALL]
    loss = loss_of(found)
    assert loss.isfinite().all()
    close(gradients(loss.sum()), gradients(loss_of(solved(adjoint, OTHERS)).sum()))
    assert found.backward is not None and found.backward.lost is not None
    assert found.backward.lost.tolist() == [row == VICTIM for row in ALL]


@EVERY_ADJOINT
@pytest.mark.filterwarnings("ignore:.*because their solve diverged")
def test_so_it_does_where_the_best_of_its_iterates_has_a_gradient(adjoint: Adjoint) -> None:
    kind: Any = type(adjoint)

    class Says(kind):  # type: ignore[misc]
        """Has another opinion of how the solve of the victim ended."""

        def attach(self, problem: JointProblem, equilibrium: Equilibrium) -> Equilibrium:
            victim = torch.arange(len(equilibrium.status)) == VICTIM
            status = equilibrium.status.masked_fill(victim, int(Status.DIVERGED))
            return super().attach(problem, replace(equilibrium, status=status))  # type: ignore[no-any-return]

    got = gradients(loss_of(solved(Says(**vars(adjoint)))).sum())
    close(got, gradients(loss_of(solved(adjoint, OTHERS)).sum()))


@EVERY_ADJOINT
def test_a_sample_that_is_lost_gives_none_even_if_it_is_asked(adjoint: Adjoint) -> None:
    """Its neighbour stands in for it: without a mask it would count twice."""
    given = problem(ALL)
    given.data["y"][VICTIM] = torch.nan
    solver = Tracking(max_nfe=30, tol=0.0, step_size=0.3)
    found = solver.solve(given, zeros(ALL, STATE), zeros(ALL, INPUT), adjoint=adjoint)
    loss = found.objective.sum()
    loss = loss + sum(flat(getattr(found, name)).sum() for name in ("z", "x", "mu") if name not in found.held)
    others = solved(adjoint, OTHERS)
    want = others.objective.sum()
    want = want + sum(flat(getattr(others, name)).sum() for name in ("z", "x", "mu") if name not in others.held)
    close(gradients(loss), gradients(want))


@EVERY_ADJOINT
@pytest.mark.parametrize("part", ["objective", "z", "x"])
def test_a_sample_of_whose_loss_the_gradient_is_not_finite_gives_none_and_is_named(adjoint: Adjoint, part: str) -> None:
    """The root of 0 is 0, and its derivative is infinite."""
    found = solved(adjoint)
    if part in found.held:
        pytest.skip("held fixed: no loss of it has a gradient")
    weight = torch.ones(5, dtype=torch.float64)
    weight[VICTIM] = 0.0
    values = flat(getattr(found, part)).flatten(1).square().sum(1) if part != "objective" else found.objective
    loss = (values * weight).sqrt()
    assert loss.isfinite().all()
    name = type(adjoint).__name__
    with pytest.warns(UserWarning, match=f"^{name}: 1 of 5 samples give no gradient, because the gradient of the loss"):
        got = gradients(loss.sum())
    others = solved(adjoint, OTHERS)
    values = flat(getattr(others, part)).flatten(1).square().sum(1) if part != "objective" else others.objective
    close(got, gradients(values.sqrt().sum()))
    assert found.backward is not None and found.backward.lost is not None
    assert found.backward.lost.tolist() == [row == VICTIM for row in ALL]


@EVERY_ADJOINT
def test_such_a_loss_does_not_spoil_the_next_backward_pass(adjoint: Adjoint) -> None:
    found, other = solved(adjoint), solved(adjoint)
    weight = torch.tensor([0.0, 1, 1, 1, 1], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.autograd.grad((found.objective * weight).sqrt().sum(), THETA, retain_graph=True)
    close(gradients(loss_of(found).sum()), gradients(loss_of(other).sum()))


@EVERY_ADJOINT
def test_where_nothing_is_wrong_nothing_is_said(adjoint: Adjoint) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = solved(adjoint)
    gradients(loss_of(found).sum())
    assert found.backward is not None and found.backward.lost is not None and not found.backward.lost.any()


# -- the backward solve -----------------------------------------------------------------------------------------------


def test_a_series_that_grows_gives_none() -> None:
    case = linear()
    found = JointAnderson(max_nfe=200, tol=1e-8).solve(case.problem, case.z0, case.x0)
    attached = Phantom(30, 1.0, step_size=10.0).attach(case.problem, found)
    with pytest.warns(
        UserWarning, match="5 of 5 samples is a Neumann series that grows, so these samples give no gradient"
    ):
        got = torch.autograd.grad(flat(attached.z).square().sum(), case.theta)
    assert not any(one.any() for one in got)
    assert attached.backward is not None and attached.backward.lost is not None and attached.backward.lost.all()


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_whether_a_series_grows_does_not_depend_on_the_units_of_the_objective(factor: float) -> None:
    """A loss of x reaches mu in its units; that is an exchange, and no growth."""
    case = CASES["tanh_ball"]()
    scaled = replace(case.problem, objective=lambda z, x: factor * case.problem.objective(z, x))
    statuses = []
    for one in (case.problem, scaled):
        found = JointAnderson(max_nfe=300, tol=1e-9).solve(one, case.z0, case.x0)
        attached = Phantom(steps=3, damping=0.5).attach(one, found)
        torch.autograd.grad(flat(attached.x).sum(), case.theta)
        assert attached.backward is not None and attached.backward.status is not None
        statuses.append(attached.backward.status.tolist())
    assert statuses == [[int(Status.OUT_OF_BUDGET)] * 5] * 2


class Claims(StationaryAdjoint):
    """Says of a multiplier that is no number that it was found."""

    def multiplier(self, system: Linearised, cotangent: Tensor, lost: Tensor) -> tuple[Tensor, BackwardReport]:
        row = torch.arange(len(cotangent))[:, None]
        status = torch.full((len(cotangent),), int(Status.CONVERGED))
        return torch.where(row == VICTIM, torch.nan, cotangent), BackwardReport(torch.zeros(len(row)), status)


def test_a_multiplier_that_is_no_number_is_not_used() -> None:
    found = solved(JacobianFree())
    detached = replace(found, z=flat(found.z).detach(), x=found.x.detach(), mu=flat(found.mu).detach())
    attached = Claims().attach(problem(ALL), detached)
    got = gradients(flat(attached.z).square().sum())
    one_step = JacobianFree().attach(problem(OTHERS), detached.pick(torch.arange(5) != VICTIM))
    close(got, gradients(flat(one_step.z).square().sum()))


def test_a_fixed_point_whose_backward_solve_diverges_gives_none() -> None:
    a, _, b = THETA
    gains = torch.ones(5, 1, dtype=torch.float64)
    gains[VICTIM] = 40.0

    def f(z: Any, rows: Any = ALL) -> Any:
        return gains[list(rows)] * (z @ a.T) + b

    z = Anderson(max_nfe=60, tol=1e-10).solve(f, zeros(ALL, STATE)).z
    backward = Damped(max_nfe=100, tol=1e-9)
    values, report = implicit_fixed_point(f, z, backward)
    with pytest.warns(UserWarning, match="implicit_fixed_point: the backward solve of 1 of 5 samples ended above"):
        got = torch.autograd.grad(flat(values).square().sum(), (a, b))
    assert report.status is not None and report.status[VICTIM] == Status.DIVERGED
    assert report.lost is not None and report.lost.tolist() == [row == VICTIM for row in ALL]
    others, _ = implicit_fixed_point(lambda z: f(z, OTHERS), flat(z)[OTHERS], backward)
    close(got, torch.autograd.grad(flat(others).square().sum(), (a, b)))


# -- picking ----------------------------------------------------------------------------------------------------------


def test_some_of_a_solution() -> None:
    """Also where there are as many evaluations as samples: the trace has these first."""
    solver = JointAnderson(max_nfe=5, tol=0.0, step_size=0.1)
    whole = solver.solve(problem(ALL), zeros(ALL, STATE), zeros(ALL, INPUT), record=True, visits=2)
    some = whole.pick(torch.tensor([True, False, False, True, False]))
    assert whole.trace is not None and some.trace is not None and whole.scale is not None and some.scale is not None
    for name in ("z", "x", "mu", "objective", "residual", "status", "nfe", "lag", "error", "curvature"):
        torch.testing.assert_close(getattr(some, name), getattr(whole, name)[[0, 3]], equal_nan=True)
    assert torch.equal(some.scale.rows, whole.scale.rows[[0, 3]])
    assert torch.equal(some.trace.residual, whole.trace.residual[:, [0, 3]])
    assert torch.equal(some.visited[1][1], whole.visited[1][1][[0, 3]])
    assert some.held == whole.held
