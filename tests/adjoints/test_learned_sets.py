"""Parameters of the feasible set learn: eq.objective by the envelope theorem, eq.z and eq.x by the other adjoints."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from catalogue import ALL, INPUT, STATE, quadratic, targets, theta_of, zeros
from deqopt import Equilibrium, JointProblem
from deqopt.adjoints import Adjoint, Envelope, Implicit, InputHeld, JacobianFree, Phantom, Unrolled
from deqopt.feasible import Box, Everywhere, FeasibleSet, Intersection, L2Ball, L2BallInBox, LinfBall
from deqopt.solvers import JointAnderson, StepRule

Make = Callable[[Tensor], FeasibleSet]
EXACT = JointAnderson(max_nfe=800, tol=1e-11, history_size=12, step_rule=StepRule.PLAIN, step_size=0.1)
# Parameters, some shared and some one a sample, and the set that they make.
SETS: dict[str, tuple[Tensor, Make]] = {
    "ball_center": (torch.tensor([0.1, -0.1, 0.2, 0.0]), lambda p: L2Ball(0.5, p)),
    "ball_center_a_sample": (torch.linspace(-0.2, 0.2, 5 * INPUT).reshape(5, INPUT), lambda p: L2Ball(0.5, p)),
    "ball_radius": (torch.tensor(0.5), lambda p: L2Ball(p)),
    "ball_radius_a_sample": (torch.linspace(0.3, 0.7, 5), lambda p: L2Ball(p)),
    "linf_radius": (torch.tensor(0.3), lambda p: LinfBall(p)),
    "box_low": (torch.tensor([-0.3, -0.2, -0.1, 0.0]), lambda p: Box(p, 0.4)),
    "box_high": (torch.tensor(0.4), lambda p: Box(-0.3, p)),
    "ball_in_box_radius": (torch.tensor(0.5), lambda p: L2BallInBox(p, -0.3, 0.4)),
    "ball_in_box_high": (torch.tensor(0.3), lambda p: L2BallInBox(0.5, -0.3, p)),
    "intersection": (torch.tensor([0.3, 0.35, 0.25, 0.3]), lambda p: Intersection((Box(-p, p), L2Ball(0.5)))),
    "nested": (torch.tensor(0.45), lambda p: Intersection((Box(-0.3, 0.4), Intersection((L2Ball(p), L2Ball(2.0)))))),
}
ADJOINTS: list[Adjoint] = [Envelope(), Implicit(), InputHeld(), JacobianFree(), Phantom()]


def problem(feasible: FeasibleSet) -> JointProblem:
    a, u, b = theta_of()
    y = targets(ALL)
    return JointProblem(lambda z, x: z @ a.T + x @ u.T + b, lambda z, x: quadratic(z, x, y), feasible)


def solved(feasible: FeasibleSet, adjoint: Adjoint | None = None) -> Equilibrium:
    found = EXACT.solve(problem(feasible), zeros(ALL, STATE), zeros(ALL, INPUT), adjoint=adjoint)
    assert found.converged.all()
    return found


def slope(make: Make, at: Tensor, direction: Tensor, value: Callable[[Equilibrium], Tensor]) -> Tensor:
    """The derivative along ``direction`` by finite differences of whole solves."""
    eps = 1e-5
    above, below = (value(solved(make((at + step * direction).detach()))) for step in (eps, -eps))
    return (above - below) / (2 * eps)


def weighted(found: Equilibrium) -> Tensor:
    return (found.objective * torch.arange(1.0, 6.0, dtype=torch.float64)).sum()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_the_objective_against_finite_differences(name: str, adjoint: Adjoint) -> None:
    start, make = SETS[name]
    at = start.double().requires_grad_()
    torch.manual_seed(1)
    direction = torch.rand_like(at) + 0.5
    (gradient,) = torch.autograd.grad(weighted(solved(make(at), adjoint)), at)
    want = slope(make, at, direction, weighted)
    assert want.abs() > 1e-2
    torch.testing.assert_close((gradient * direction).sum(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("adjoint", [Implicit(tol=1e-10), Unrolled()], ids=["implicit", "unrolled"])
def test_any_other_loss_against_finite_differences(name: str, adjoint: Adjoint) -> None:
    start, make = SETS[name]
    at = start.double().requires_grad_()
    torch.manual_seed(1)
    direction = torch.rand_like(at) + 0.5

    def loss(found: Equilibrium) -> Tensor:
        assert isinstance(found.z, Tensor)
        return found.z.sin().sum() + found.x.cos().sum()

    (gradient,) = torch.autograd.grad(loss(solved(make(at), adjoint)), at)
    torch.testing.assert_close((gradient * direction).sum(), slope(make, at, direction, loss), rtol=1e-4, atol=1e-5)


def test_the_gradient_to_theta_is_that_without_learned_bounds() -> None:
    a, u, b = theta_of()
    y, gradients = targets(ALL), []
    for radius in (0.5, torch.tensor(0.5, dtype=torch.float64, requires_grad=True)):
        one = JointProblem(lambda z, x: z @ a.T + x @ u.T + b, lambda z, x: quadratic(z, x, y), L2Ball(radius))
        found = EXACT.solve(one, zeros(ALL, STATE), zeros(ALL, INPUT), adjoint=Envelope())
        gradients.append(torch.autograd.grad(found.objective.sum(), (a, u, b)))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_a_set_alone_is_enough_to_learn() -> None:
    radius = torch.tensor(0.5, requires_grad=True)
    one = JointProblem(lambda z, x: 0.5 * z + x, lambda z, x: (z - 3).square().sum(1), L2Ball(radius))
    found = EXACT.solve(one, torch.zeros(2, 1), torch.zeros(2, 1), adjoint=Envelope())
    found.objective.sum().backward()
    # z = 2 x and x = radius: J = (2 radius - 3)^2
    assert radius.grad is not None and float(radius.grad) == pytest.approx(2 * 2 * 2 * (2 * 0.5 - 3), rel=1e-4)


def test_a_bound_that_is_nowhere_active_gets_none() -> None:
    radius = torch.tensor(50.0, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(solved(L2Ball(radius), Envelope()).objective.sum(), radius)
    assert abs(float(gradient)) < 1e-6


def test_no_adjoint_no_gradient() -> None:
    radius = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    found = solved(L2Ball(radius))
    assert not any(part.requires_grad for part in (found.x, found.objective, found.mu, found.z))  # type: ignore[union-attr]
    assert torch.equal(found.x, solved(L2Ball(0.5)).x) and isinstance(Everywhere(), FeasibleSet)
