"""The implicit gradient with the input held: that of the equilibrium of a given x, and no more."""

from contextlib import nullcontext

import pytest
import torch

from catalogue import CASES, linear, theta_of
from deqopt import JointProblem
from deqopt.adjoints import Adjoint, Envelope, Implicit, InputHeld
from deqopt.solvers import JointAnderson

EXACT = JointAnderson(max_nfe=500, tol=1e-10, history_size=12)
HELD = InputHeld(tol=1e-10, max_nfe=200)


def gradients(adjoint: Adjoint, weights: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Of ``sum |z|^3`` to theta, samples weighted."""
    case = linear()
    found = EXACT.solve(case.problem, case.z0, case.x0, adjoint=adjoint)
    assert isinstance(found.z, torch.Tensor)
    loss = found.z.abs().pow(3).sum(1)
    return torch.autograd.grad((loss if weights is None else weights * loss).sum(), case.theta)


def closed_form(weights: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """The same with ``z = (I - A)^-1 (U x + b)`` at the optimal x, which is a number here."""
    case = linear()
    assert case.truth is not None
    a, u, b = case.theta
    z = (case.truth.x @ u.T + b) @ torch.linalg.inv(torch.eye(len(a), dtype=a.dtype) - a).T
    loss = z.abs().pow(3).sum(1)
    return torch.autograd.grad((loss if weights is None else weights * loss).sum(), case.theta)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.0, 2, 0, 1, 0], dtype=torch.float64)])
def test_it_is_the_gradient_of_the_equilibrium_at_a_given_input(weights: torch.Tensor | None) -> None:
    for got, want in zip(gradients(HELD, weights), closed_form(weights), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-8)


def test_what_theta_does_to_the_input_is_left_out() -> None:
    held, whole = gradients(HELD), gradients(Implicit(tol=1e-10))
    assert max(float((one - other).norm() / other.norm()) for one, other in zip(held, whole, strict=True)) > 0.1


@pytest.mark.parametrize("name", ["linear_box", "linear_tuple", "tanh_ball"])
def test_the_objective_has_the_gradient_of_the_envelope_and_x_has_none(name: str) -> None:
    case = CASES[name]()
    found, plain = (EXACT.solve(case.problem, case.z0, case.x0, adjoint=one) for one in (HELD, Envelope()))
    assert found.held == {"x", "mu"} and not found.detach_held().x.requires_grad
    for got, want in zip(
        torch.autograd.grad(found.objective.sum(), case.theta, allow_unused=True),
        torch.autograd.grad(plain.objective.sum(), case.theta, allow_unused=True),
        strict=True,
    ):
        assert (got is None and want is None) or torch.equal(got, want)


@pytest.mark.parametrize("budget", [3, 200])
def test_the_report_says_how_far_it_came(budget: int) -> None:
    theta = theta_of(gain=0.9)
    a, u, b = theta
    problem = JointProblem(
        cell=lambda z, x: torch.tanh(z @ a.T + x @ u.T + b),
        objective=lambda z, x: z.square().sum(1) + x.square().sum(1),
    )
    zeros = torch.zeros(3, len(a), dtype=torch.float64), torch.zeros(3, u.shape[1], dtype=torch.float64)
    found = EXACT.solve(problem, *zeros, adjoint=InputHeld(tol=1e-6, max_nfe=budget))
    assert isinstance(found.z, torch.Tensor) and found.backward is not None
    with pytest.warns(UserWarning) if budget == 3 else nullcontext() as caught:
        found.z.sum().backward()
    if caught is not None:
        assert str(caught[0].message).startswith(
            "InputHeld: the backward solve of 3 of 3 samples ended above tol=1e-06, "
        )
    residual, nfe = found.backward.residual, found.backward.nfe
    assert residual is not None and nfe is not None
    assert bool((residual <= 1e-6).all()) == (budget == 200) and bool((nfe <= budget).all())
