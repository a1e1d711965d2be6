"""Bilevel: what a step costs, where its solves begin, and that the descents are those of the textbooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from catalogue import CASES, STATE, in_ball, linear, linear_with_data, tanh, targets, theta_of, zeros
from deqopt import Equilibrium, JointProblem, Status
from deqopt.adjoints import Unrolled
from deqopt.errors import ProblemError
from deqopt.feasible import Everywhere, FeasibleSet, L2Ball
from deqopt.fixed_point import Anderson, Broyden, Damped, FixedPointSolver
from deqopt.loop_settings import Norm
from deqopt.solvers import LBFGS, PGD, Adam, Bilevel, Descent, JointSystem, solve_exactly
from deqopt.spec import spec

EXACT = Anderson(max_nfe=40, tol=1e-13)


@dataclass
class Counted:
    """The problem of ``linear`` with the rows of the calls of f counted, in the solves and in all."""

    calls: int = 0
    rows: int = 0

    def problem(self, data: bool = False) -> JointProblem:
        case = linear_with_data() if data else linear()

        def cell(z: Any, x: Tensor, *given: Any) -> Any:
            self.calls, self.rows = self.calls + 1, self.rows + len(x)
            return case.problem.cell(z, x, *given)

        return replace(case.problem, cell=cell)


def total_gradient(x: Tensor) -> Tensor:
    """Of ``J(z(x), x)`` of :func:`linear`, through the closed form of z."""
    a, u, b = (tensor.detach() for tensor in theta_of())
    x = x.detach().requires_grad_()
    z = (x @ u.T + b) @ torch.linalg.inv(torch.eye(STATE, dtype=a.dtype) - a).T
    value = (z - targets(range(5))).square().sum() + 0.5 * x.square().sum()
    return torch.autograd.grad(value, x)[0]


def path_of(solver: Bilevel, feasible: FeasibleSet | None = None) -> list[Tensor]:
    """The inputs that were evaluated, in order, with all their neighbours."""
    case = linear(feasible=feasible)
    found = solver.solve(case.problem, case.z0, case.x0, visits=1000)
    return [case.x0, *(x for _, x in found.visited)]


# -- descents ---------------------------------------------------------------------------------------------------------


def by_hand(step: Callable[[Tensor, Tensor], Tensor], count: int, feasible: FeasibleSet) -> list[Tensor]:
    x = zeros(range(5), 4)
    path = [x, x]
    for _ in range(count):
        x = feasible.project(step(x, total_gradient(x)))
        path.append(x)
    return path


@pytest.mark.parametrize("feasible", [Everywhere(), L2Ball(0.6)])
@pytest.mark.parametrize(
    ("norm", "direction"),
    [(None, lambda g: g), (Norm.L2, lambda g: g / g.norm(dim=1, keepdim=True)), (Norm.LINF, lambda g: g.sign())],
)
def test_pgd_takes_the_steps_of_pgd(
    norm: Norm | None, direction: Callable[[Tensor], Tensor], feasible: FeasibleSet
) -> None:
    """The start, the start once it is solved, and then step by step along the total derivative."""
    path = path_of(Bilevel(max_nfe=300, tol=0, descent=PGD(lr=0.05, norm=norm), inner=EXACT), feasible)
    expected = by_hand(lambda x, g: x - 0.05 * direction(g), 4, feasible)
    assert len(path) >= 6
    for got, want in zip(path[:6], expected, strict=True):
        assert torch.allclose(got, want, atol=1e-8)


def test_adam_is_torchs_adam() -> None:
    path = path_of(Bilevel(max_nfe=400, tol=0, descent=Adam(lr=0.07, betas=(0.8, 0.95), eps=1e-6), inner=EXACT))
    x = zeros(range(5), 4).requires_grad_()
    torchs = torch.optim.Adam([x], lr=0.07, betas=(0.8, 0.95), eps=1e-6)
    for got in path[1:8]:
        assert torch.allclose(got, x, atol=1e-8)
        x.grad = total_gradient(x)
        torchs.step()


def test_lbfgs_is_bfgs_of_the_last_pairs() -> None:
    """After a first step along the gradient, ``lr`` long where the terms of ``g_x`` do not cancel."""
    case = linear(rows=[2])
    system = JointSystem.of(case.problem, case.z0, case.x0, EXACT)
    descent, x = LBFGS(lr=0.1, history_size=3, longest=1e9), case.x0
    memory, points, gradients = descent.begin(x), [], []
    pairs: list[tuple[Tensor, Tensor]] = []
    for k in range(7):
        point = solve_at(case.problem, x)
        evaluation = system.evaluate(system.pack(point.z, point.mu, x))
        points.append(x[0])
        gradients.append(evaluation.g_x[0])
        if k:
            pairs = [*pairs, (points[-1] - points[-2], gradients[-1] - gradients[-2])][-3:]
        inverse = inverse_hessian(pairs) if k else torch.eye(4, dtype=x.dtype) * 0.1 / evaluation.size
        x = descent.step(system, evaluation, memory)
        assert torch.allclose(x[0], points[-1] - inverse @ gradients[-1], atol=1e-9)


def inverse_hessian(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """BFGS updates of ``(s^T y / y^T y) I``, as matrices."""
    s, y = pairs[-1]
    eye = torch.eye(len(s), dtype=s.dtype)
    matrix = (s @ y) / (y @ y) * eye
    for s, y in pairs:
        left = eye - torch.outer(s, y) / (s @ y)
        matrix = left @ matrix @ left.T + torch.outer(s, s) / (s @ y)
    return matrix


def solve_at(problem: JointProblem, x: Tensor) -> Equilibrium:
    zero, none = zeros(range(len(x)), STATE), torch.zeros(len(x))
    return solve_exactly(problem, Equilibrium(zero, x, zero, none, none, none.long(), none.long()), EXACT)


def test_lbfgs_needs_far_fewer_moves_than_gradient_steps_and_uses_its_memory() -> None:
    case = linear()
    spent = [
        Bilevel(max_nfe=5000, tol=1e-7, descent=descent, inner=EXACT).solve(case.problem, case.z0, case.x0)
        for descent in (LBFGS(), LBFGS(history_size=1), PGD(lr=0.15))
    ]
    assert all(found.converged.all() for found in spent)
    assert (spent[0].nfe < spent[1].nfe).all() and (4 * spent[0].nfe < spent[2].nfe).all()


def test_lbfgs_takes_no_longer_step_than_it_may() -> None:
    path = path_of(Bilevel(max_nfe=300, tol=0, descent=LBFGS(lr=5.0, longest=0.2), inner=EXACT))
    lengths = torch.stack([(after - before).norm(dim=1) for before, after in pairwise(path)])
    assert (lengths <= 0.2 + 1e-9).all() and (lengths > 0.2 - 1e-9).any()


def test_lbfgs_descends_where_the_curvature_is_negative() -> None:
    """A pair of negative curvature would turn the step uphill, to the maximum at 0."""
    problem = JointProblem(lambda z, x: 0.5 * z + x, lambda z, x: torch.cos(2 * z).sum(1) + 0.01 * x.square().sum(1))
    x0 = torch.tensor([[0.05, -0.1, 0.02]], dtype=torch.float64)
    found = Bilevel(max_nfe=600, tol=1e-6, descent=LBFGS(lr=0.02), inner=EXACT).solve(problem, zeros([0], 3), x0)
    assert found.converged.all() and found.objective < -2.9


@pytest.mark.parametrize("descent", [Adam(lr=0.2), LBFGS()])
def test_descents_that_rescale_the_gradient_still_find_the_optimum_on_the_boundary(descent: Descent) -> None:
    """Scaled by Adam, or turned by L-BFGS, g_x itself and projection would come to rest elsewhere on the ball."""
    case = linear(feasible=L2Ball(0.5))
    found = Bilevel(max_nfe=3000, tol=1e-5, descent=descent, inner=EXACT).solve(case.problem, case.z0, case.x0)
    assert found.converged.all()
    with torch.no_grad():
        assert torch.allclose(found.x, in_ball(theta_of(), targets(range(5)), 0.5), atol=1e-4)


# -- what a step costs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [7, 30, 100, 333])
@pytest.mark.parametrize("inner", [Damped(max_nfe=1), Anderson(max_nfe=2, tol=0), Broyden(max_nfe=12, tol=1e-3)])
def test_the_budget_is_never_exceeded_and_used_up_to_less_than_a_step(inner: FixedPointSolver, budget: int) -> None:
    case, step = linear(), inner.max_nfe + 2
    if budget < 1 + 2 * step:
        with pytest.raises(ProblemError, match=f"at least {1 + 2 * step}, got {budget}"):
            Bilevel(max_nfe=budget, inner=inner)
        return
    found = Bilevel(max_nfe=budget, tol=0, inner=inner).solve(case.problem, case.z0, case.x0)
    assert (found.nfe <= budget).all() and (found.nfe > budget - step).all()


def test_spent_evaluations_are_those_that_were_made() -> None:
    """Forwards of f: one an evaluation, n in the solve for z, one for the graph; n products in the solve for mu."""
    counted, n = Counted(), 7
    case = linear()
    solver = Bilevel(max_nfe=200, tol=0, descent=PGD(lr=0.01), inner=Damped(max_nfe=n, tol=0))
    found = solver.solve(counted.problem(), case.z0, case.x0, record=True)
    assert found.trace is not None
    evaluations = len(found.trace.residual)
    steps, looks = evaluations - 1, 1
    assert counted.calls == looks + evaluations + steps * (n + 1)
    assert found.nfe.tolist() == [evaluations + steps * (n + 1)] * 5, "(n + 1 + n) / 2, rounded up"
    assert evaluations == 1 + (200 - 1) // (n + 2)


def test_solves_that_converge_early_leave_more_steps() -> None:
    """The first is a step away from its solution; so warm starts get further with the same budget."""
    case = linear()
    lengths = []
    for warm in (True, False):
        inner = Damped(max_nfe=25, tol=1e-4)
        solver = Bilevel(max_nfe=300, tol=1e-9, descent=PGD(lr=0.005), inner=inner, warm=warm)
        found = solver.solve(case.problem, case.z0, case.x0, record=True)
        assert found.trace is not None
        lengths.append(len(found.trace.residual))
    assert lengths[0] > 1.4 * lengths[1]


def test_cold_solves_start_where_the_solve_began() -> None:
    case = linear()
    starts: list[Tensor] = []

    @dataclass(frozen=True)
    class Watching(Damped):
        def begin(self, w: Tensor) -> Any:
            starts.append(w)
            return super().begin(w)

    z0, mu0 = zeros(range(5), STATE) + 1, zeros(range(5), STATE) - 2
    for warm in (False, True):
        starts.clear()
        inner = Watching(max_nfe=4)
        solver = Bilevel(max_nfe=60, tol=0, inner=inner, warm=warm)
        solver.solve(case.problem, z0, case.x0, mu0=mu0)
        at_start = [torch.equal(w, start) for w, start in zip(starts, [z0, mu0] * len(starts), strict=False)]
        assert len(at_start) >= 12 and at_start[:2] == [True, True]
        assert all(at_start) if not warm else not any(at_start[2:])


def test_samples_that_have_converged_leave_the_inner_solves_where_data_is_given() -> None:
    """Of five samples one is far from its equilibrium."""
    rows = {}
    for data in (False, True):
        counted = Counted()
        problem = counted.problem(data)
        start = Bilevel(max_nfe=600, tol=1e-9, descent=LBFGS(), inner=EXACT).solve(problem, linear().z0, linear().x0)
        x0 = start.x.clone()
        x0[1] += 1
        counted.rows = 0
        solver = Bilevel(max_nfe=600, tol=1e-6, descent=LBFGS(), inner=EXACT)
        found = solver.solve(problem, start.z, x0, mu0=start.mu)
        assert found.converged.all() and (found.nfe[[0, 2, 3, 4]] == 1).all()
        assert torch.allclose(found.x, start.x, atol=1e-5)
        rows[data] = counted.rows
    assert rows[True] < 0.3 * rows[False]


# -- samples ----------------------------------------------------------------------------------------------------------


def cliff(height: float) -> JointProblem:
    """The cell is NaN where ``|x|`` is larger than ``height``; the optimum of ``tanh`` lies beyond for some."""
    case = tanh()

    def cell(z: Any, x: Tensor) -> Any:
        image: Any = case.problem.cell(z, x)
        return torch.where(x.norm(dim=1, keepdim=True) > height, torch.nan, image)

    return replace(case.problem, cell=cell)


@pytest.mark.parametrize("descent", [PGD(lr=1.0, norm=Norm.L2), Adam(lr=0.5), LBFGS(lr=2.0)])
def test_a_sample_that_is_lost_starts_again_with_shorter_steps(descent: Descent) -> None:
    case = tanh()
    common: dict[str, Any] = {"max_nfe": 300, "tol": 1e-6, "descent": descent, "inner": Anderson(max_nfe=12, tol=1e-9)}
    lost = Bilevel(**common, restarts=0).solve(cliff(0.9), case.z0, case.x0)
    found = Bilevel(**common, restarts=4).solve(cliff(0.9), case.z0, case.x0)
    assert (lost.status == Status.DIVERGED).any() and found.usable.all() and found.z.isfinite().all()  # type: ignore[union-attr]
    assert (found.objective <= lost.objective + 1e-9).all()
    assert (found.objective < lost.objective - 1e-2).any()
    assert (found.x.norm(dim=1) <= 0.9).all()


@pytest.mark.parametrize("descent", [PGD(lr=0.1), Adam(), LBFGS()])
def test_restarting_forgets_the_row_alone(descent: Descent) -> None:
    case = linear()
    system = JointSystem.of(case.problem, case.z0, case.x0, EXACT)

    def walk(x: Tensor, memory: Any, steps: int) -> list[Tensor]:
        path = []
        for _ in range(steps):
            point = solve_at(case.problem, x)
            x = descent.step(system, system.evaluate(system.pack(point.z, point.mu, x)), memory)
            path.append(x)
        return path

    memory = descent.begin(case.x0)
    middle = walk(case.x0, memory, 4)[-1]
    memory.restart(torch.tensor([False, True, False, False, False]))
    after = walk(middle, memory, 3)
    fresh = descent.begin(case.x0)
    fresh.rate[:] = 0.5
    begun, straight = walk(middle, fresh, 3), walk(case.x0, descent.begin(case.x0), 7)[4:]
    for got, new, on in zip(after, begun, straight, strict=True):
        assert torch.allclose(got[1], new[1], atol=1e-9)
        assert torch.allclose(got[[0, 2, 3, 4]], on[[0, 2, 3, 4]], atol=1e-9)
    if not isinstance(descent, PGD):
        assert not torch.allclose(begun[-1][0], straight[-1][0], atol=1e-3), "there was something to forget"


# -- gradients and checkpoints ----------------------------------------------------------------------------------------


def test_it_refuses_to_be_differentiated_through() -> None:
    case = tanh()
    with pytest.raises(ProblemError, match="its inner solves keep no graph; use the adjoint Implicit or Envelope"):
        Bilevel(max_nfe=60).solve(case.problem, case.z0, case.x0, adjoint=Unrolled())


def test_a_budget_for_forty_moves_by_default_and_a_description_for_checkpoints() -> None:
    case = CASES["conv"]()
    solver = replace(Bilevel(), tol=0, inner=Anderson(max_nfe=12, tol=0))
    found = solver.solve(case.problem, case.z0, case.x0, record=True)
    assert found.trace is not None and len(found.trace.residual) == 1 + 1 + 40
    described = spec(Bilevel(descent=PGD(norm=Norm.L2), inner=Broyden(max_nfe=5)))["init_args"]
    assert described["descent"]["class_path"].endswith("PGD") and described["descent"]["init_args"]["norm"] == "L2"
    assert described["inner"]["class_path"].endswith("Broyden") and described["inner"]["init_args"]["max_nfe"] == 5
