"""Joint problems x solvers: what the contract suite does not ask of them, and settings that it is not run with."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from catalogue import ALL, CASES, INNER, SOLVERS, Case, flat, linear, tanh, theta_of, zeros
from deqopt import Equilibrium, JointProblem, Status
from deqopt.adjoints import Adjoint, Envelope, Implicit, Unrolled
from deqopt.errors import ProblemError
from deqopt.feasible import Box, L2Ball, LinfBall
from deqopt.fixed_point import Anderson, Broyden, MixingType
from deqopt.solvers import (
    LBFGS,
    PGD,
    Adam,
    Bilevel,
    JointAnderson,
    JointBroyden,
    JointSolver,
    StepRule,
    Tracking,
    solve_exactly,
)
from deqopt.state import State, tensors_of
from deqopt.testing.trial import same_bits

PLAIN: dict[str, Any] = {"step_rule": StepRule.PLAIN, "step_size": 0.1}
SHORT: dict[str, JointSolver] = {
    "anderson": JointAnderson(max_nfe=40, tol=1e-6, **PLAIN),
    "anderson_type_II": JointAnderson(max_nfe=40, tol=1e-6, kind=MixingType.II, **PLAIN),
    "anderson_normalised": JointAnderson(max_nfe=40, tol=1e-6, step_size=0.3, step_rule=StepRule.NORMALISED),
    "broyden": JointBroyden(max_nfe=40, tol=1e-6, **PLAIN),
    "tracking": Tracking(max_nfe=40, tol=1e-6),
    "bilevel_pgd": Bilevel(max_nfe=40, tol=1e-6, descent=PGD(lr=0.1), inner=Anderson(max_nfe=6, tol=1e-8)),
    "bilevel_adam_cold": Bilevel(
        max_nfe=40, tol=1e-6, descent=Adam(lr=0.2), inner=Broyden(max_nfe=6, tol=1e-8), warm=False
    ),
    "bilevel_lbfgs": Bilevel(max_nfe=40, tol=1e-6, descent=LBFGS(), inner=Anderson(max_nfe=6, tol=1e-8)),
}


def tolerance(solver: JointSolver) -> float:
    """Tracking's last steps of x have this length, up to a factor: it cannot come closer to an inner optimum."""
    if isinstance(solver, Tracking):
        return 10 * solver.step_size * solver.inner / solver.max_nfe
    return max(10 * solver.tol, 1e-8)


@cache
def solved(name: str, solver: str) -> tuple[Case, Equilibrium]:
    case = CASES[name]()
    return case, SOLVERS[solver].solve(case.problem, case.z0, case.x0)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["linear_ball", "linear_tuple"])
def test_closed_forms(name: str, solver: str) -> None:
    case, found = solved(name, solver)
    assert case.truth is not None
    for got, want in [
        (flat(found.z), case.truth.z),
        (found.x.flatten(1), case.truth.x),
        (flat(found.mu), case.truth.mu),
        (found.objective, case.truth.objective),
    ]:
        assert (got - want).abs().max() < tolerance(SOLVERS[solver]) * (1 + want.abs().max())
    assert found.x.shape == case.x0.shape and type(found.z) is type(case.z0)
    if "tracking" not in solver:
        assert found.converged.all() and (found.residual <= SOLVERS[solver].tol).all()


@pytest.mark.parametrize("name", ["linear_box", "linear_ball"])
def test_the_constraints_of_the_catalogue_are_active(name: str) -> None:
    constrained, free = CASES[name]().truth, linear().truth
    assert constrained is not None and free is not None
    assert (constrained.objective > free.objective + 1e-3).all()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["linear_groups", "tanh_ball"])
def test_what_converged_is_stationary(name: str, solver: str) -> None:
    """The three equations of the Lagrangian, from one more evaluation of the problem."""
    case, found = solved(name, solver)
    at = case.problem.evaluate(found.z, found.x, found.mu)
    step = found.x - case.problem.feasible.project(found.x - 0.1 * at.g_x)
    near = tolerance(SOLVERS[solver]) * (1 + flat(found.mu).abs().max())
    assert (flat(at.f) - flat(found.z)).abs().max() < near
    assert (flat(at.g_z) - flat(found.mu)).abs().max() < near
    assert step.abs().max() < near
    assert torch.allclose(at.objective, found.objective, rtol=1e-12)


def test_samples_stop_when_they_have_converged() -> None:
    case = tanh()
    cell_calls = 0

    def cell(z: State, x: Tensor) -> State:
        nonlocal cell_calls
        cell_calls += 1
        return case.problem.cell(z, x)

    solver = JointAnderson(max_nfe=400, tol=1e-6)
    start = solver.solve(case.problem, case.z0, case.x0)
    x0 = start.x + torch.tensor([0.0, 1e-5, 1e-3, 0.1, 1.0])[:, None]
    found = solver.solve(replace(case.problem, cell=cell), start.z, x0, mu0=start.mu)
    assert found.converged.all()
    assert len(set(found.nfe.tolist())) > 2 and found.nfe.max() < 400
    assert found.nfe[0] == 1
    looks = 1 + len(set(found.nfe.tolist()))
    assert cell_calls <= found.nfe.max() + looks, "one each, and looks at the scale: at the start, at claims"


@pytest.mark.parametrize("solver", SHORT)
def test_visits_come_from_the_trajectory(solver: str) -> None:
    case, count = CASES["linear_tuple"](), 5
    seen: list[Tensor] = []

    def cell(z: State, x: Tensor) -> State:
        seen.append(torch.cat([flat(z), x.flatten(1)], 1).detach().clone())
        return case.problem.cell(z, x)

    longer = replace(SHORT[solver], max_nfe=80)
    found = longer.solve(replace(case.problem, cell=cell), case.z0, case.x0, visits=count)
    visits = [torch.cat([flat(z), x.flatten(1)], 1) for z, x in found.visited]
    assert len(visits) == count
    for visit in visits:
        assert any(torch.equal(visit, point) for point in seen)
        assert not visit.requires_grad
    assert len({tuple(visit.flatten().tolist()) for visit in visits}) == count, "no point twice"


def test_inference_mode_is_refused_with_advice() -> None:
    case = tanh()
    with torch.inference_mode(), pytest.raises(ProblemError, match=r"use torch\.no_grad instead"):
        SHORT["anderson"].solve(case.problem, case.z0, case.x0)


def test_autocast_keeps_the_state_in_single_precision() -> None:
    case, few = CASES["conv"](), replace(SHORT["anderson"], max_nfe=8)
    single = few.solve(case.problem, case.z0, case.x0)
    with torch.autocast("cpu", torch.bfloat16):
        found = few.solve(case.problem, case.z0, case.x0, adjoint=Envelope())
    assert {part.dtype for part in (*found.z, *found.mu, found.x, found.objective)} == {torch.float32}
    assert found.usable.all()
    assert torch.allclose(found.objective, single.objective, rtol=0.05)
    assert not same_bits(found.x, single.x), "autocast is on"


def test_half_precision_starts_are_solved_in_single() -> None:
    found = SHORT["anderson"].solve(
        JointProblem(lambda z, x: 0.5 * z + x, lambda z, x: (z - 1).square().sum(1) + x.square().sum(1)),
        torch.zeros(2, 3, dtype=torch.bfloat16),
        torch.zeros(2, 3, dtype=torch.float16),
    )
    assert found.z.dtype == found.x.dtype == torch.float32  # type: ignore[union-attr]
    assert found.converged.all()
    assert torch.allclose(found.x, torch.full((2, 3), 0.4), atol=1e-4)


@pytest.mark.parametrize("solver", ["tracking", "bilevel_lbfgs"])
def test_an_infeasible_start_is_projected_with_a_warning(solver: str) -> None:
    case = CASES["linear_ball"]()
    outside = case.x0 + 3
    with pytest.warns(UserWarning, match="x0 is not in the feasible set: it was projected onto it") as caught:
        found = SHORT[solver].solve(case.problem, case.z0, outside)
    assert caught[0].filename == __file__, "the warning points at the caller"
    inside = SHORT[solver].solve(case.problem, case.z0, case.problem.feasible.project(outside))
    assert torch.allclose(found.x, inside.x, atol=1e-12)


@pytest.mark.parametrize("solver", SHORT)
@pytest.mark.parametrize("feasible", [Box(0.2, 0.2), L2Ball(0.0), LinfBall(0.0)])
def test_a_set_of_one_point(feasible: Any, solver: str) -> None:
    case = linear(feasible=feasible)
    chosen = SHORT[solver]
    if isinstance(chosen, Bilevel):
        chosen = replace(chosen, max_nfe=80, inner=Anderson(max_nfe=25, tol=1e-8))
    found = chosen.solve(case.problem, case.z0, feasible.project(case.x0))
    assert torch.equal(found.x, feasible.project(case.x0))
    assert found.converged.all()


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_convergence_does_not_depend_on_the_units_of_x(factor: float) -> None:
    """An input in other units is found to the same relative accuracy."""
    case = linear()
    scaled = JointProblem(
        lambda z, x: case.problem.cell(z, x / factor), lambda z, x: case.problem.objective(z, x / factor)
    )
    found = JointAnderson(max_nfe=200, tol=1e-8, step_size=0.1 * factor**2, step_rule=StepRule.PLAIN).solve(
        scaled, case.z0, case.x0
    )
    assert case.truth is not None and found.converged.all()
    assert torch.allclose(found.x / factor, case.truth.x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_input_that_acts_only_away_from_the_start_is_found(dtype: torch.dtype) -> None:
    """A multiplicative injection: at z0 = 0 and x0 = 0 neither f nor J depends on x."""
    a, u, b = (tensor.detach().to(dtype) for tensor in theta_of())
    y = torch.linspace(-1, 1, 30, dtype=dtype).reshape(5, 6)
    problem = JointProblem(
        lambda z, x: torch.tanh(z @ a.T + b + z * (x @ u.T)), lambda z, x: (z - y).square().sum(1) + x.square().sum(1)
    )
    found = JointAnderson(max_nfe=400, tol=1e-5).solve(
        problem, torch.zeros(5, 6).to(dtype), torch.zeros(5, 4).to(dtype)
    )
    assert found.converged.all() and found.x.abs().amax(1).min() > 0.01
    g_x = problem.evaluate(found.z, found.x, found.mu).g_x
    assert g_x.abs().max() < 1e-3


@pytest.mark.parametrize("solver", SHORT)
@pytest.mark.parametrize("gain", [1.5, 5.0])
def test_a_cell_that_does_not_contract(gain: float, solver: str) -> None:
    a = gain * torch.eye(3, dtype=torch.float64)
    problem = JointProblem(lambda z, x: z @ a + x, lambda z, x: (z - 1).square().sum(1) + x.square().sum(1), Box(-1, 1))
    found = replace(SHORT[solver], max_nfe=100, restarts=0).solve(problem, zeros(ALL, 3) + 1, zeros(ALL, 3))
    assert all(value.isfinite().all() for value in (found.z, found.x, found.mu, found.objective))  # type: ignore[union-attr]
    if solver == "tracking":
        assert (found.status == Status.DIVERGED).all() and (found.nfe < 100).all()
        assert "use a smaller step size" in found.report()
    assert (found.residual <= 1).all()


@cache
def start_and_best(name: str) -> tuple[Case, Equilibrium, Equilibrium]:
    """The start with its z and mu solved for, and the best point that is known."""
    case, best = solved(name, "tracking")
    rough = JointAnderson(max_nfe=1).solve(case.problem, case.z0, case.x0)
    start, best = (solve_exactly(case.problem, one, INNER) for one in (rough, best))
    return case, start, best


LONGER = {"bilevel_pgd": (200,), "bilevel_adam_cold": (200,), "bilevel_lbfgs": (200,), "anderson_normalised": (200,)}
BUDGETS = [(solver, budget) for solver in SHORT for budget in LONGER.get(solver, (24, 48))]


@pytest.mark.parametrize(("solver", "budget"), BUDGETS)
@pytest.mark.parametrize("name", ["linear_groups", "tanh_ball"])
def test_a_start_at_equilibrium_is_improved(name: str, budget: int, solver: str) -> None:
    """At the start z and mu are exact for x0, and at no other point of the trajectory: the best is still another."""
    case, start, best = start_and_best(name)
    chosen = replace(SHORT[solver], max_nfe=budget)
    found = solve_exactly(case.problem, chosen.solve(case.problem, start.z, start.x, mu0=start.mu), INNER)
    gained = (start.objective - found.objective) / (start.objective - best.objective)
    assert gained.mean() > 0.9 and gained.min() > -1e-6


@pytest.mark.parametrize("adjoint", [None, Envelope(), Implicit(), Unrolled()], ids=repr)
@pytest.mark.parametrize("solver", ["anderson", "tracking", "bilevel_lbfgs"])
def test_results_are_contiguous_and_own_their_memory(solver: str, adjoint: Adjoint | None) -> None:
    if isinstance(SHORT[solver], Bilevel) and isinstance(adjoint, Unrolled):
        return
    case = CASES["linear_tuple"]()
    found = SHORT[solver].solve(case.problem, case.z0, case.x0, adjoint=adjoint, visits=2)
    exact = solve_exactly(case.problem, found)
    for part in (*tensors_of(found.z), found.x, *tensors_of(found.mu)):
        assert part.view(-1).untyped_storage().nbytes() == part.numel() * part.element_size()
    for z, x in ((found.z, found.x), (found.mu, found.x), (exact.z, exact.mu), *found.visited):
        assert all(part.is_contiguous() for part in (*tensors_of(z), *tensors_of(x)))
