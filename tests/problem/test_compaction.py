"""Samples that have converged leave the batch: what that saves, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from catalogue import ALL, CASES, INPUT, STATE, WEIGHT_OF_X, flat, quadratic, targets, theta_of, zeros
from deqopt import Equilibrium, JointProblem, Status, iteration
from deqopt.feasible import Box, Everywhere, FeasibleSet, Intersection, L2Ball, LinfBall
from deqopt.fixed_point import Anderson
from deqopt.loop_settings import Norm
from deqopt.solvers import LBFGS, Bilevel, JointAnderson, JointBroyden, JointSolver, StepRule, Tracking

SOLVERS: dict[str, JointSolver] = {
    "anderson": JointAnderson(max_nfe=200, tol=1e-7),
    "anderson_block_damping": JointAnderson(max_nfe=200, tol=1e-7, damping=(1.0, 0.9, 0.7)),
    "broyden": JointBroyden(max_nfe=200, tol=1e-7),
    "tracking": Tracking(max_nfe=150, tol=2e-2, step_size=0.4),
    "bilevel": Bilevel(max_nfe=400, tol=1e-6, descent=LBFGS(), inner=Anderson(max_nfe=15, tol=1e-9)),
}


class Unpickable(L2Ball):
    """A set of which some samples cannot be had."""

    def pick(self, keep: Tensor, dim: int) -> FeasibleSet | None:  # type: ignore[override]
        return None


def spread() -> Tensor:
    """A number a sample and entry of x."""
    return torch.linspace(-0.4, 0.4, len(ALL) * INPUT, dtype=torch.float64).reshape(len(ALL), INPUT)


SETS: dict[str, Callable[[], FeasibleSet]] = {
    "everywhere": Everywhere,
    "ball": lambda: L2Ball(0.5),
    "ball around each": lambda: L2Ball(0.5, center=spread()),
    "cube around each": lambda: LinfBall(0.3, center=spread()),
    "ball around one": lambda: L2Ball(0.5, center=spread()[0]),
    "box of each": lambda: Box(spread() - 0.2, spread() + 0.3),
    "box with one side of each": lambda: Box(spread() - 0.2, 1.0),
    "both": lambda: Intersection((Box(spread() - 0.2, spread() + 0.3), L2Ball(0.4, center=spread())), tol=1e-13),
}


@dataclass
class Watched:
    """The linear problem, and the rows of every call of its cell."""

    feasible: FeasibleSet
    rows: list[int]

    @classmethod
    def of(cls, feasible: FeasibleSet) -> Watched:
        return cls(feasible, [])

    def problem(self, with_data: bool) -> JointProblem:
        a, u, b = (tensor.detach() for tensor in theta_of())
        data = {"target": targets(ALL), "nothing": ()}

        def cell(z: Any, x: Tensor, given: Any = data) -> Any:
            assert len(z) == len(x) == len(given["target"])
            self.rows.append(len(z))
            return z @ a.T + x @ u.T + b

        def objective(z: Any, x: Tensor, given: Any = data) -> Tensor:
            return quadratic(z, x, given["target"])

        return JointProblem(cell, objective, self.feasible, data if with_data else None)

    def solve(self, solver: JointSolver, with_data: bool, **settings: Any) -> Equilibrium:
        """From a start at which samples 1, 3 and 4 have converged."""
        problem = self.problem(with_data)
        x0 = self.feasible.project(zeros(ALL, INPUT))
        exact = JointAnderson(max_nfe=400, tol=1e-12).solve(problem, zeros(ALL, STATE), x0)
        assert exact.converged.all()
        assert isinstance(exact.z, Tensor) and isinstance(exact.mu, Tensor)
        left = torch.tensor([True, False, True, False, False])[:, None]
        self.rows.clear()
        return solver.solve(
            problem,
            torch.where(left, 0.0, exact.z),
            torch.where(left, x0, exact.x),
            mu0=torch.where(left, 0.0, exact.mu),
            **settings,
        )


@pytest.mark.parametrize(
    ("name", "solver"),
    [*((name, "anderson") for name in SETS), *(("ball around each", one) for one in SOLVERS if one != "anderson")],
)
def test_only_what_moves_is_evaluated_and_the_results_are_the_same(name: str, solver: str) -> None:
    """Every sample keeps its own target, centre and bounds."""
    apart, together = Watched.of(SETS[name]()), Watched.of(SETS[name]())
    got, want = (one.solve(SOLVERS[solver], data) for one, data in ((apart, True), (together, False)))
    for part in ("z", "x", "mu", "objective", "residual"):
        assert torch.allclose(getattr(got, part), getattr(want, part), rtol=1e-7, atol=1e-8), part
    assert torch.equal(got.nfe, want.nfe) and torch.equal(got.status, want.status)
    assert got.nfe[[1, 3, 4]].tolist() == [1, 1, 1] and (got.nfe[[0, 2]] > 5).all()
    assert got.scale is not None and want.scale is not None
    assert torch.allclose(got.scale.rows, want.scale.rows, rtol=1e-9), "of the first evaluation, of all"
    assert set(together.rows) == {5}
    assert set(apart.rows[:2]) == {5} and max(apart.rows[2:]) == 2
    assert sum(apart.rows) < 0.5 * sum(together.rows)
    assert apart.feasible.distance(got.x).max() < 1e-9


def test_a_set_that_cannot_be_picked_keeps_its_samples_in_the_batch() -> None:
    one = Watched.of(Unpickable(0.5, center=spread()))
    got = one.solve(SOLVERS["anderson"], with_data=True)
    assert set(one.rows) == {5} and got.converged.all() and got.nfe[[1, 3, 4]].tolist() == [1, 1, 1]
    both = Watched.of(Intersection((Box(-1.0, 1.0), Unpickable(0.5, center=spread()))))
    both.solve(SOLVERS["anderson"], with_data=True)
    assert set(both.rows) == {5}


@pytest.mark.parametrize("solver", SOLVERS)
def test_trace_and_visits_keep_every_sample_in_its_place(solver: str) -> None:
    ways = {}
    for data in (True, False):
        torch.manual_seed(3)
        ways[data] = Watched.of(L2Ball(0.5, center=spread())).solve(SOLVERS[solver], data, record=True, visits=6)
    got, want = ways[True], ways[False]
    assert got.trace is not None and want.trace is not None
    assert torch.allclose(got.trace.residual, want.trace.residual, rtol=1e-5, atol=1e-9)
    assert torch.allclose(got.trace.objective, want.trace.objective, rtol=1e-7)
    assert len(got.visited) == len(want.visited) > 2
    for (z, x), (other_z, other_x) in zip(got.visited, want.visited, strict=True):
        assert torch.allclose(flat(z), flat(other_z), atol=1e-7) and torch.allclose(x, other_x, atol=1e-7)


def test_a_lost_sample_leaves_too() -> None:
    """One of NaN, one that breaks underway and is out of restarts."""
    watched = Watched.of(Everywhere())
    problem = watched.problem(with_data=True)
    fragile = torch.tensor([[0.0], [1.0], [0.0], [0.0], [0.0]], dtype=torch.float64)

    def cell(z: Any, x: Tensor, given: Any) -> Any:
        image: Any = problem.cell(z, x, given)
        return torch.where((given["fragile"] > 0) & (x.norm(dim=1, keepdim=True) > 0.3), torch.nan, image)

    spoiled = replace(problem, cell=cell, data={"target": targets(ALL), "fragile": fragile})
    x0 = zeros(ALL, INPUT)
    x0[2] = torch.nan
    found = JointAnderson(max_nfe=60, tol=1e-9, restarts=1).solve(spoiled, zeros(ALL, STATE), x0)
    assert found.status.tolist() == [0, Status.DIVERGED, Status.NON_FINITE, 0, 0]
    assert found.x[1].isfinite().all() and found.nfe[2] == 1
    assert "1 of 5 non_finite: the start itself is NaN or infinite" in found.report()
    assert watched.rows[0] == 5 and watched.rows[-1] <= 4
    plain = JointAnderson(max_nfe=60, tol=1e-9).solve(watched.problem(True), zeros(ALL, STATE), zeros(ALL, INPUT))
    assert torch.allclose(found.x[[0, 3, 4]], plain.x[[0, 3, 4]], atol=1e-8)


# -- tolerances of joint solvers --------------------------------------------------------------------------------------


def test_a_joint_sample_converges_by_its_absolute_residual_where_its_equilibrium_is_zero() -> None:
    """z, mu and x tend to 0, where relative residuals stay what they are until all is a millionth of the start."""
    problem = JointProblem(lambda z, x: 0.7 * z + x, lambda z, x: z.square().sum(1) + WEIGHT_OF_X * x.square().sum(1))
    z0 = torch.ones(2, 3, dtype=torch.float64)
    solver = JointAnderson(max_nfe=300, history_size=1, tol=1e-4, step_size=0.01, step_rule=StepRule.PLAIN)
    relative = solver.solve(problem, z0, 0 * z0)
    both = replace(solver, atol=1e-3).solve(problem, z0, 0 * z0)
    assert both.converged.all() and (both.nfe < 0.8 * relative.nfe).all()
    at = problem.evaluate(both.z, both.x, both.mu)
    assert isinstance(both.z, Tensor) and isinstance(both.mu, Tensor)
    for image, point in ((at.f, both.z), (at.g_z, both.mu)):
        assert (flat(image) - point).norm(dim=1).max() <= 1e-3


@pytest.mark.parametrize("norm", Norm)
def test_joint_residuals_are_measured_in_the_chosen_norm(norm: Norm) -> None:
    problem = Watched.of(Everywhere()).problem(with_data=False)
    z, mu = zeros(ALL, STATE) + 1, zeros(ALL, STATE) - 1
    found = JointAnderson(max_nfe=1, norm=norm).solve(problem, z, zeros(ALL, INPUT), mu0=mu)
    at = problem.evaluate(z, zeros(ALL, INPUT), mu)
    pairs = [(flat(at.f), z), (flat(at.g_z), mu)]
    lags = torch.stack([norm.of(image - point) / norm.of(image) for image, point in pairs])
    assert (found.residual >= lags.amax(0) - 1e-12).all()
    assert torch.allclose(found.residual[:1], lags.amax(0)[:1]), "of the first sample the largest is a lag"


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["linear_with_data", "tanh_ball"])
def test_looking_seldom_as_on_an_accelerator_finds_the_same(
    name: str, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are frozen at once in any case; only leaving the batch and starting again wait for the next look."""
    case = CASES[name]()
    x0 = case.x0.clone()
    x0[2] = torch.nan
    often = SOLVERS[solver].solve(case.problem, case.z0, x0)
    monkeypatch.setattr(iteration, "looks", lambda k, device, settings: k % iteration.LOOK_EVERY == 0)
    seldom = SOLVERS[solver].solve(case.problem, case.z0, x0)
    assert torch.equal(often.nfe, seldom.nfe) and torch.equal(often.status, seldom.status)
    others = [0, 1, 3, 4]
    assert torch.allclose(often.x[others], seldom.x[others], atol=1e-9)
    assert not seldom.usable[2]
