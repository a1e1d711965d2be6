"""Tracking and its secants: when x moves and how far, and states that know where the equilibrium goes."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from catalogue import linear, tanh, zeros
from deqopt import JointProblem
from deqopt.fixed_point import Anderson
from deqopt.solvers import SecantTracking, Tracking, solve_exactly
from deqopt.solvers.secant_tracking import CoupledMixing


def path(solver: Tracking, problem: JointProblem, z0: Tensor, x0: Tensor) -> Tensor:
    """The inputs at which the problem was evaluated, (evaluations, B, width)."""
    seen: list[Tensor] = []

    def objective(z: Tensor, x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return problem.objective(z, x)

    solver.solve(replace(problem, objective=objective), z0, x0)
    return torch.stack(seen[-solver.max_nfe :])


def slope(width: int = 2) -> JointProblem:
    """x acts on J alone, and always in the same direction: the gradient of every sample is (1, 0, ...)."""
    return JointProblem(lambda z, x: 0.5 * z + 1, lambda z, x: z.sum(1) + x[:, 0])


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0, 2.0])
def test_the_steps_decay_as_told(decay: float) -> None:
    solver = Tracking(max_nfe=20, tol=0, step_size=0.3, inner=1, settle=0, decay=decay)
    steps = path(solver, slope(), zeros([0], 3), zeros([0], 2)).diff(dim=0).norm(dim=2).flatten()
    spent = torch.arange(1, 20, dtype=torch.float64) / 20
    assert torch.allclose(steps, 0.3 * (1 - spent) ** decay)


@pytest.mark.parametrize(("inner", "settle"), [(2, 0), (2, 3), (5, 4)])
def test_x_moves_now_and_then_by_shrinking_steps(inner: int, settle: int) -> None:
    case = linear()
    solver = Tracking(max_nfe=30, tol=0, step_size=0.3, inner=inner, settle=settle)
    lengths = path(solver, case.problem, case.z0, case.x0).diff(dim=0).norm(dim=2)  # type: ignore[arg-type]
    moves = [k + 1 for k in range(29) if lengths[k].max() > 0]
    assert moves == [k for k in range(1, 30 - settle) if k % inner == 0], "x is at rest in between and at the end"
    steps = lengths[[k - 1 for k in moves]]
    assert (steps[1:] < steps[:-1]).all() and (steps <= 0.3).all()
    assert torch.allclose(steps[0], torch.full((5,), 0.3 * (1 - inner / (30 - settle)), dtype=torch.float64))
    assert torch.allclose(steps, steps[:, :1].expand_as(steps)), "the length does not depend on the gradient's"


@pytest.mark.parametrize("kind", [Tracking, SecantTracking])
@pytest.mark.parametrize(("warmup", "settle"), [(0, 0), (5, 0), (0, 4), (5, 4)])
def test_x_rests_first_and_last(kind: type[Tracking], warmup: int, settle: int) -> None:
    """And the steps between decay as they do in a solve that is made of these alone."""
    solver = kind(max_nfe=20, tol=0, step_size=0.3, inner=1, warmup=warmup, settle=settle)
    steps = path(solver, slope(), zeros([0], 3), zeros([0], 2)).diff(dim=0).norm(dim=2).flatten()
    moving = 20 - warmup - settle
    alone = 0.3 * (1 - torch.arange(1, moving, dtype=torch.float64) / moving)
    rest_first, rest_last = torch.zeros(warmup).double(), torch.zeros(settle).double()
    assert torch.allclose(steps, torch.cat([rest_first, alone, rest_last]))


def test_a_first_move_that_waits_has_the_right_direction() -> None:
    """The multiplier of z0 is not that of the equilibrium: here it has the other sign."""
    problem = JointProblem(lambda z, x: 0.2 * z + x + 4, lambda z, x: (z - 4).square().sum(1))
    hasty, patient = (
        path(Tracking(max_nfe=20, tol=0, inner=1, warmup=warmup), problem, zeros([0], 1), zeros([0], 1)).diff(dim=0)
        for warmup in (0, 6)
    )
    at = solve_exactly(problem, Tracking(max_nfe=20).solve(problem, zeros([0], 1), zeros([0], 1)))
    assert at.x.item() < 0, "downhill is to the left"
    assert hasty[1].item() > 0
    assert patient[patient != 0][0].item() < 0


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_momentum_sums_up_earlier_steps(momentum: float) -> None:
    solver = Tracking(max_nfe=20, tol=0, step_size=0.3, inner=1, settle=0, decay=0, momentum=momentum)
    moves = path(solver, slope(), zeros([0], 3), zeros([0], 2)).diff(dim=0)[:, 0, 0]
    expected = -0.3 * (1 - momentum ** torch.arange(1, 20, dtype=torch.float64))
    assert torch.allclose(moves, expected)


@pytest.mark.parametrize(("lag", "expected"), [(0.0, [4, 4]), (1e-2, [4, 1]), (1e9, [1, 1])])
def test_a_sample_whose_state_lags_little_moves_sooner(lag: float, expected: list[int]) -> None:
    """The first sample's equilibrium is approached slowly, the second's at once."""
    rate = torch.tensor([[0.99], [1e-6]], dtype=torch.float64)
    problem = JointProblem(lambda z, x: rate * z + 1, lambda z, x: z.sum(1) + x[:, 0])
    solver = Tracking(max_nfe=42, tol=0, step_size=0.1, inner=4, settle=0, lag=lag)
    moved = path(solver, problem, zeros([0, 1], 3), zeros([0, 1], 2)).diff(dim=0).norm(dim=2) > 0
    late = moved[20:40].double().mean(0)
    assert late.tolist() == [1 / every for every in expected]


@pytest.mark.parametrize("states", [3, 5])
def test_secants_of_a_linear_cell_predict_its_equilibrium(states: int) -> None:
    """With as many secants as there are unknowns it is far closer than a plain update, wherever x goes next."""
    torch.manual_seed(0)
    inputs, batch = 2, 4
    a = torch.randn(states, states, dtype=torch.float64)
    a, u = 0.9 * a / torch.linalg.matrix_norm(a, 2), torch.randn(states, inputs, dtype=torch.float64)

    def image(s: Tensor, x: Tensor) -> Tensor:
        return s @ a.T + x @ u.T + 1

    s, x = torch.zeros(batch, states, dtype=torch.float64), torch.zeros(batch, inputs, dtype=torch.float64)
    memory = CoupledMixing(s, x, states + inputs + 1, 10.0, widths=[states - 1, 1])
    for _ in range(states + inputs + 1):
        before, plain, move = s, image(s, x), torch.randn_like(x)
        at: Any = SimpleNamespace(states=before, image=plain, x=x)
        s, x = memory.follow(at, move), x + move
    exact = torch.linalg.solve(torch.eye(states, dtype=a.dtype) - a, (x @ u.T + 1).T).T
    assert ((s - exact).norm(dim=1) < 0.3 * (plain - exact).norm(dim=1)).all()


@pytest.mark.parametrize("budget", [24, 48, 96])
def test_secants_are_on(budget: int) -> None:
    """With x moving at every evaluation of a slow cell, predicted states leave less to be gained than plain ones."""
    a = 0.9 * torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    u = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    problem = JointProblem(lambda z, x: z @ a.T + x @ u.T, lambda z, x: (z - y).square().sum(1))
    z0, x0 = zeros(range(5), 6), zeros(range(5), 4)

    def reached(solver: Tracking) -> Tensor:
        return solve_exactly(problem, solver.solve(problem, z0, x0), Anderson(max_nfe=200, tol=1e-10)).objective

    plain = reached(Tracking(max_nfe=budget, tol=0, step_size=0.1, inner=1))
    predicted = reached(SecantTracking(max_nfe=budget, tol=0, step_size=0.1))
    assert predicted.mean() < 0.96 * plain.mean()


def test_secants_come_close_on_the_catalogue() -> None:
    case = linear()
    found = SecantTracking(max_nfe=200, tol=0, step_size=0.5).solve(case.problem, case.z0, case.x0)
    assert case.truth is not None
    assert torch.allclose(found.x, case.truth.x, atol=0.02)
    assert (found.objective - case.truth.objective).abs().max() < 1e-3


def test_a_frozen_x_leaves_anderson_mixing() -> None:
    """While x rests the secants accelerate z and mu alone."""
    case = tanh()
    still = replace(case.problem, feasible=type(case.problem.feasible)())
    slow = SecantTracking(max_nfe=14, tol=1e-12, step_size=1e-300, history_size=6).solve(still, case.z0, case.x0)
    plain = Tracking(max_nfe=14, tol=1e-12, step_size=1e-300, inner=1).solve(still, case.z0, case.x0)

    def distance(found: object) -> Tensor:
        z, x = found.z, found.x  # type: ignore[attr-defined]
        return (still.f(z, x) - z).norm(dim=1)  # type: ignore[operator]

    assert (distance(slow) < 0.1 * distance(plain)).all()
