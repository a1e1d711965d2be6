"""What a solve claims holds: the objective is that of its x, CONVERGED is solved, what is solved is said to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from deqopt import Equilibrium, JointProblem, Status
from deqopt.feasible import Box, Everywhere, FeasibleSet, L2Ball, LinfBall
from deqopt.fixed_point import Anderson, Broyden, Damped, FixedPointSolver
from deqopt.loop_settings import Norm
from deqopt.solvers import Bilevel, JointAnderson, JointBroyden, JointSolver, SecantTracking, StepRule, Tracking

SAMPLES, STATE, INPUT = 5, 6, 4
SOLVERS: dict[str, Callable[..., JointSolver]] = {
    "secant_tracking": SecantTracking,
    "tracking": Tracking,
    "anderson": JointAnderson,
    "broyden": JointBroyden,
    "bilevel": lambda **settings: Bilevel(**settings, inner=Anderson(max_nfe=12, tol=settings["tol"] / 10)),
}


def made(name: str, max_nfe: int, tol: float = 1e-6) -> JointSolver:
    return SOLVERS[name](max_nfe=max_nfe, tol=tol)


def fit(gain: float, seed: int = 0) -> tuple[JointProblem, Tensor]:
    """``z = A z + U x`` with ``|A| = gain``, ``J = |z - y|^2``; and y."""
    generator = torch.Generator().manual_seed(seed)
    a, u, y = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((STATE, STATE), (STATE, INPUT), (SAMPLES, STATE))
    )
    a = gain * a / torch.linalg.matrix_norm(a, 2)
    return JointProblem(lambda z, x: z @ a.T + 0.5 * x @ u.T, lambda z, x: (z - y).square().sum(1)), y


def exact(problem: JointProblem, x: Tensor) -> Tensor:
    """(B,) J at the equilibrium of x, by plain updates."""
    z = x.new_zeros(len(x), STATE)
    for _ in range(400):
        z = problem.f(z, x)  # type: ignore[assignment]
    return problem.J(z, x)


def check_objective(problem: JointProblem, found: Equilibrium, x0: Tensor) -> None:
    """It is that of x, or the report says that it was measured off the equilibrium; and x is no worse than x0."""
    value, start = exact(problem, found.x), exact(problem, x0)
    assert (value <= start * (1 + 1e-9)).all()
    assert found.state_lag is not None and found.error is not None
    hidden = value - found.objective > 0.1 * value + 1e-9
    assert not (hidden & (found.state_lag < 0.1) & (found.error < 0.1 * found.objective)).any()
    assert not hidden.any() or "objectives were measured off the equilibrium" in found.report()


# -- starts at which J is lower than at any equilibrium ----------------------------------------------------------------


@pytest.mark.parametrize("share", [0.9, 2.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_start_that_nearly_fits_by_chance_is_left(solver: str, share: float) -> None:
    problem, y = fit(0.95)
    x0 = y.new_zeros(SAMPLES, INPUT)
    for budget in (40, 200):
        found = made(solver, budget).solve(problem, share * y, x0)
        check_objective(problem, found, x0)
    assert (found.x.norm(dim=1) > 0.05).all()


# -- CONVERGED is solved -----------------------------------------------------------------------------------------------


def on_x(objective: Callable[[Tensor], Tensor]) -> JointProblem:
    """An objective of x alone beside a cell that has nothing to do with it."""
    return JointProblem(lambda z, x: 0.3 * z + 0.1, lambda z, x: objective(x).sum(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("start", [-3.0, -10.0, -20.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_gradient_that_was_large_at_the_start_is_no_measure(solver: str, start: float, dtype: torch.dtype) -> None:
    """cosh(x - 3): the gradient at the start is up to 5e9 times that near the solution."""
    problem = on_x(lambda x: torch.cosh(x - 3))
    found = made(solver, 600, 1e-5).solve(
        problem, torch.ones(1, 1, dtype=dtype), torch.full((1, 1), start, dtype=dtype)
    )
    assert not found.converged.any() or abs(float(found.x) - 3) < 1e-2
    if solver == "bilevel":
        assert found.converged.all()


@pytest.mark.parametrize("start", [(0.0, 0.0), (5.0, 5.0)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_stiff_direction_does_not_hide_a_soft_one(solver: str, start: tuple[float, float]) -> None:
    stiffness = torch.tensor([1e4, 1.0], dtype=torch.float64)
    problem = on_x(lambda x: 0.5 * stiffness * (x - 1).square())
    z0, x0 = torch.ones(1, 1, dtype=torch.float64), torch.tensor([start], dtype=torch.float64)
    found = made(solver, 600, 1e-5).solve(problem, z0, x0)
    assert not found.converged.any() or (found.x - 1).abs().max() < 0.05
    if solver in ("bilevel", "anderson", "broyden"):
        assert found.converged.all()


SMALL_SETS: dict[str, tuple[Callable[[Tensor], FeasibleSet], float, float]] = {
    "a ball far out": (lambda centre: L2Ball(0.3, centre), 1000.0, 0.3),
    "a tiny ball": (lambda centre: L2Ball(1e-6), 0.0, 1e-6),
    "a box far out": (lambda centre: Box(centre - 0.2, centre + 0.2), 1000.0, 0.2),
    "a tiny cube": (lambda centre: LinfBall(1e-6), 0.0, 1e-6),
    "a ball": (lambda centre: L2Ball(0.3), 0.0, 0.3),
    "everywhere, far out": (lambda centre: Everywhere(), 1000.0, 1.0),
}


@pytest.mark.parametrize(
    ("name", "norm"), [*((name, Norm.L2) for name in SMALL_SETS), ("a tiny cube", Norm.LINF), ("a ball", Norm.LINF)]
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_feasible_set_may_be_small_against_x(solver: str, name: str, norm: Norm) -> None:
    """The projected gradient over a step through the set is small relative to the gradient, by a measure of our own."""
    make, middle, radius = SMALL_SETS[name]
    inner, y = fit(0.6)
    x0 = torch.full((SAMPLES, INPUT), middle, dtype=torch.float64)
    problem = JointProblem(
        lambda z, x: inner.f(z, x - middle), lambda z, x: inner.J(z, x) + 0.1 * (x - middle).square().sum(1), make(x0)
    )
    chosen = replace(made(solver, 600, 1e-4), norm=norm)
    if isinstance(chosen, Tracking):
        chosen = replace(chosen, step_size=radius / 3)
    found = chosen.solve(problem, 0 * y, x0)
    at = problem.evaluate(found.z, found.x, found.mu)
    a = radius / at.g_x.norm(dim=1, keepdim=True).clamp_min(1e-3)
    moved = (found.x - problem.feasible.project(found.x - a * at.g_x)).norm(dim=1) / radius
    off = torch.minimum(moved, at.g_x.norm(dim=1))
    assert (off[found.converged] < 5e-3).all()
    if not isinstance(chosen, Tracking):
        assert found.converged.all()


@pytest.mark.parametrize("start", [0.05, 0.3, 0.7, 1.7, 3.0])
@pytest.mark.parametrize("rule", StepRule)
@pytest.mark.parametrize("kind", [JointAnderson, JointBroyden])
def test_a_maximum_is_not_converged_to(kind: Callable[..., JointSolver], rule: StepRule, start: float) -> None:
    """``(x^2 - 1)^2``: a point worse than its start is never CONVERGED, and one at the maximum is said to be one."""
    problem = on_x(lambda x: (x.square() - 1).square())
    z0, x0 = torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), start, dtype=torch.float64)
    found = kind(max_nfe=300, tol=1e-5, step_size=0.1, step_rule=rule).solve(problem, z0, x0)
    assert (found.objective <= problem.J(z0, x0) + 1e-9).all()
    if found.converged.all() and abs(float(found.x)) < 0.5:
        assert "the objective curves downwards" in found.report()
    elif found.converged.all():
        assert abs(abs(float(found.x)) - 1) < 1e-3


def test_a_saddle_is_reported() -> None:
    """``x_1^2 - x_2^2``, bounded: a secant method steps onto the saddle from above."""
    problem = on_x(lambda x: torch.stack([4 * x[:, 0].square(), -0.5 * x[:, 1].square()], 1))
    z0, x0 = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[1.0, 0.1]], dtype=torch.float64)
    found = JointBroyden(max_nfe=100, tol=1e-8).solve(problem, z0, x0)
    assert found.curvature is not None
    assert not found.converged.any() or found.curvature < 0 or found.x[0, 1].abs() > 1


@pytest.mark.parametrize("solver", [Anderson(), Broyden(), Damped()], ids=lambda solver: type(solver).__name__)
def test_a_cell_that_works_in_place_is_solved(solver: FixedPointSolver) -> None:
    z0, x = torch.ones(2, 3), torch.arange(6.0).reshape(2, 3)
    cells: dict[str, Callable[[Tensor], Tensor]] = {
        "mul_": lambda z: z.mul_(0.5).add_(x),
        "relu": lambda z: 0.5 * torch.nn.functional.relu(z, inplace=True) + x,
    }
    for cell in cells.values():
        found = solver.solve(cell, z0)  # type: ignore[arg-type]
        assert isinstance(found.z, Tensor)
        assert torch.allclose(found.z, 2 * x, atol=1e-4) and (found.status == Status.CONVERGED).all()
        assert torch.equal(z0, torch.ones(2, 3)), "the start is the caller's"


# -- what is solved is said to be --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("solver", [JointAnderson, SOLVERS["bilevel"]], ids=["anderson", "bilevel"])
def test_a_perfect_fit_converges(solver: Any, dtype: torch.dtype) -> None:
    """mu tends to zero, relative to which nothing is small."""
    generator = torch.Generator().manual_seed(0)
    a, u, y = (torch.randn(*shape, generator=generator) for shape in ((4, 4), (4, 4), (SAMPLES, 4)))
    a, u, y = 0.6 * a / torch.linalg.matrix_norm(a, 2), u / 2, 0.5 * torch.tanh(y)
    a, u, y = a.to(dtype), u.to(dtype), y.to(dtype)
    problem = JointProblem(lambda z, x: torch.tanh(z @ a.T + x @ u.T), lambda z, x: (z - y).square().sum(1))
    tol = 1e-6 if dtype is torch.float64 else 1e-4
    found = solver(max_nfe=300, tol=tol).solve(problem, 0 * y, 0 * y)
    assert found.converged.all() and (found.objective < 100 * tol**2).all() and (found.nfe < 200).all()


@pytest.mark.parametrize("solver", [Anderson(), Broyden(), Damped()], ids=lambda solver: type(solver).__name__)
def test_a_fixed_point_at_zero_converges(solver: FixedPointSolver) -> None:
    for start in (1.0, 1e-8, 1e8):
        found = solver.solve(lambda z: 0.5 * z, start * torch.ones(2, 3, dtype=torch.float64))
        assert (found.status == Status.CONVERGED).all() and (found.nfe < 50).all()
        assert isinstance(found.z, Tensor) and found.z.abs().max() <= 1e-10 * start


@pytest.mark.parametrize("far", [1e5, 1e7])
@pytest.mark.parametrize("kind", [JointAnderson, JointBroyden])
def test_an_optimum_far_away_is_reached(kind: Callable[..., JointSolver], far: float) -> None:
    problem = JointProblem(lambda z, x: 0.5 * z + 0.5 * x, lambda z, x: (z - far).square().sum(1))
    zero = torch.zeros(2, 3, dtype=torch.float64)
    found = kind(max_nfe=300, tol=1e-6, step_rule=StepRule.PLAIN, step_size=0.1).solve(problem, zero, zero)
    assert found.converged.all() and ((found.x / far - 1).abs() < 1e-3).all()


@pytest.mark.parametrize("units", [1e-12, 1e8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_default_steps_do_not_depend_on_the_units_of_the_objective(dtype: torch.dtype, units: float) -> None:
    inner, y = fit(0.6)
    y = y.to(dtype)
    problem = JointProblem(
        lambda z, x: inner.f(z.double(), x.double()).to(dtype),  # type: ignore[union-attr]
        lambda z, x: units * ((z - y).square().sum(1) + 0.1 * x.square().sum(1)),
    )
    tol = 1e-5 if dtype is torch.float64 else 1e-3
    for kind in (JointAnderson, JointBroyden):
        found = kind(max_nfe=200, tol=tol).solve(problem, 0 * y, y.new_zeros(SAMPLES, INPUT))
        assert found.converged.all() and (found.nfe < 180).all(), kind


# -- what a result is made of ------------------------------------------------------------------------------------------


def test_the_report_says_what_to_change() -> None:
    problem, y = fit(0.6)
    x0 = y.new_zeros(SAMPLES, INPUT)
    short = Tracking(max_nfe=8, step_size=0.01).solve(problem, 0 * y, x0)
    hasty = JointAnderson(max_nfe=3, step_size=10.0).solve(problem, 0 * y, x0)
    assert "x is not yet stationary" in short.report() or "z and mu lag behind x" in short.report()
    assert "z and mu lag behind x: try a smaller step size" in hasty.report()
    assert repr(hasty) == f"Equilibrium of {SAMPLES} samples\n{hasty.report()}"
