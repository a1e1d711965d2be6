"""The exactly solved point of a given input."""

from dataclasses import replace

import pytest
import torch

from catalogue import ALL, CASES, STATE, WITH_TRUTH, flat, linear, targets, truth_at, zeros
from deqopt import Equilibrium, JointProblem, Status
from deqopt.fixed_point import Anderson, Damped, FixedPointSolver
from deqopt.solvers import JointAnderson, Tracking, solve_exactly

INNER: dict[str, FixedPointSolver] = {
    "anderson": Anderson(max_nfe=200, tol=1e-11),
    "damped": Damped(max_nfe=200, tol=1e-11),
}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", WITH_TRUTH)
def test_closed_form_at_any_input(name: str, inner: str) -> None:
    """After a few evaluations x is not optimal and z and mu lag behind; then z and mu are exact and x is the same."""
    case, theta, y = CASES[name](), linear().theta, targets(ALL)
    rough = Tracking(max_nfe=7, step_size=0.7).solve(case.problem, case.z0, case.x0)
    exact = solve_exactly(case.problem, rough, INNER[inner])
    a, u, b = theta
    truth = truth_at((a, u, b), y, rough.x.flatten(1))
    assert torch.equal(exact.x, rough.x)
    assert torch.allclose(flat(exact.z), truth.z, atol=1e-9)
    assert torch.allclose(flat(exact.mu), truth.mu, atol=1e-9)
    assert torch.allclose(exact.objective, truth.objective, rtol=1e-9)
    assert not torch.allclose(rough.objective, truth.objective, rtol=1e-3), "there was something to solve"
    assert type(exact.z) is type(case.z0) and exact.x.shape == case.x0.shape


@pytest.mark.parametrize("name", WITH_TRUTH)
def test_residual_is_that_of_the_whole_system(name: str) -> None:
    case = CASES[name]()
    done = JointAnderson(max_nfe=300, tol=1e-10).solve(case.problem, case.z0, case.x0)
    rough = Tracking(max_nfe=7, step_size=0.7).solve(case.problem, case.z0, case.x0)
    assert (solve_exactly(case.problem, done, INNER["anderson"]).residual < 1e-8).all()
    assert (solve_exactly(case.problem, rough, INNER["anderson"]).residual > 1e-3).any(), "x is not optimal"


def test_the_multiplier_is_solved_on_one_graph_of_f() -> None:
    case = linear()
    calls = 0

    def cell(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        image = case.problem.cell(z, x)
        assert isinstance(image, torch.Tensor)
        return image

    rough = Tracking(max_nfe=8).solve(case.problem, case.z0, case.x0)
    exact = solve_exactly(replace(case.problem, cell=cell), rough)
    alone = Anderson(max_nfe=100, tol=1e-5).solve(lambda z: case.problem.f(z, rough.x), rough.z)
    assert calls <= alone.nfe.max() + 3
    assert torch.equal(exact.nfe, rough.nfe) and torch.equal(exact.status, rough.status), "those of the solve"


def test_works_under_no_grad_and_carries_no_gradient() -> None:
    case = linear()
    with torch.no_grad():
        rough = Tracking(max_nfe=8).solve(case.problem, case.z0, case.x0)
        exact = solve_exactly(case.problem, rough, INNER["anderson"])
    assert torch.allclose(exact.mu, solve_exactly(case.problem, rough, INNER["anderson"]).mu)  # type: ignore[arg-type]
    assert not any(value.requires_grad for value in (exact.z, exact.mu, exact.objective))  # type: ignore[union-attr]


def test_a_lost_sample_leaves_its_neighbours() -> None:
    case = linear()
    found = JointAnderson(max_nfe=20).solve(case.problem, case.z0, case.x0)
    x = found.x.clone()
    x[2] = torch.nan
    hurt, sane = solve_exactly(case.problem, replace(found, x=x)), solve_exactly(case.problem, found)
    others = [0, 1, 3, 4]
    assert isinstance(hurt.z, torch.Tensor) and isinstance(sane.z, torch.Tensor)
    assert torch.equal(hurt.z[others], sane.z[others])
    assert torch.equal(hurt.objective[others], sane.objective[others])


def start_at(x: torch.Tensor) -> Equilibrium:
    count = len(x)
    return Equilibrium(
        z=zeros(range(count), STATE),
        x=x,
        mu=zeros(range(count), STATE) + 1,
        objective=torch.zeros(count),
        residual=torch.ones(count),
        status=torch.full((count,), int(Status.OUT_OF_BUDGET)),
        nfe=torch.zeros(count, dtype=torch.long),
    )


def test_an_objective_without_z_has_no_multiplier() -> None:
    problem = JointProblem(lambda z, x: 0.5 * z + x[:, :1], lambda z, x: x.square().sum(1))
    exact = solve_exactly(problem, start_at(zeros(ALL, 2) + 1), INNER["anderson"])
    assert torch.allclose(flat(exact.z), zeros(ALL, STATE) + 2)
    assert flat(exact.mu).abs().max() < 1e-9
    assert exact.objective.tolist() == pytest.approx([2.0] * 5)


def test_a_cell_without_z_has_the_gradient_as_multiplier() -> None:
    problem = JointProblem(lambda z, x: x.repeat(1, 3), lambda z, x: z.square().sum(1))
    exact = solve_exactly(problem, start_at(zeros(ALL, 2) + 1), INNER["anderson"])
    assert torch.allclose(flat(exact.z), zeros(ALL, STATE) + 1)
    assert torch.allclose(flat(exact.mu), zeros(ALL, STATE) + 2)


@pytest.mark.parametrize("name", CASES)
def test_by_default_it_is_exact_to_1e_5(name: str) -> None:
    """Measured here, relative to the length of z and mu; after a rough solve there is something to do."""
    case = CASES[name]()
    rough = Tracking(max_nfe=7, step_size=0.7).solve(case.problem, case.z0, case.x0)

    def lags(found: Equilibrium) -> torch.Tensor:
        at = case.problem.evaluate(found.z, found.x, found.mu)
        pairs = ((at.f, found.z), (at.g_z, found.mu))
        shares = [
            (flat(new) - flat(old)).flatten(1).norm(dim=1) / flat(new).flatten(1).norm(dim=1) for new, old in pairs
        ]
        return torch.stack(shares).max(0).values

    assert (lags(rough) > 1e-3).any()
    assert (lags(solve_exactly(case.problem, rough)) <= 2e-5).all()
