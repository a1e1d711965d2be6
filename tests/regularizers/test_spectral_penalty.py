"""The spectral penalty: the gain in the dominant direction of the adjoint iteration, from the multiplier on."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from catalogue import ALL, STATE, linear, linear_tuple, tanh, theta_of, zeros
from deqopt import JointProblem, Status
from deqopt.errors import ProblemError
from deqopt.fixed_point import Damped, FixedPoint
from deqopt.regularizers import SpectralPenalty
from deqopt.solvers import JointAnderson
from deqopt.state import detach, state_of, tensors_of
from penalty_points import quadratic_cell, solved


def random_multiplier(z: Any) -> Any:
    return state_of((torch.randn_like(part) for part in tensors_of(z)), z)


@pytest.mark.parametrize("products", [0, 1, 4])
@pytest.mark.parametrize("make", [linear, linear_tuple])
def test_penalty_is_the_gain_after_some_products(make: Callable[[], Any], products: int) -> None:
    """For ``f = A z + ...`` it is ``|A^T u|^2`` with ``u = (A^T)^p mu``, of length one."""
    case = make()
    a = case.theta[0].detach()
    mu = random_multiplier(case.z0)
    at = replace(solved(case.problem, case.z0, case.x0), mu=mu)
    u = torch.cat([part.flatten(1) for part in tensors_of(mu)], dim=1)
    for _ in range(products):
        u = u @ a
    gain = (u @ a).norm(dim=1) / u.norm(dim=1)
    value = SpectralPenalty(products=products).penalty(case.problem, at)
    assert value.item() == pytest.approx(gain.square().mean().item(), rel=1e-5)


def test_many_products_find_the_spectral_radius() -> None:
    """Of a symmetric matrix, where the random probes of the Jacobian penalty see the mean of all directions."""
    values = torch.tensor([0.9, 0.3, -0.2, 0.1, 0.05], dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    a = (q @ torch.diag(values) @ q.T).requires_grad_()
    problem = JointProblem(lambda z, x: z @ a.T + x, lambda z, x: z.sum(1))
    start = torch.zeros(3, 5, dtype=torch.float64)
    at = replace(solved(problem, start, start), mu=torch.randn_like(start))
    penalty = SpectralPenalty(products=30).penalty(problem, at)
    assert penalty.item() == pytest.approx(0.81, rel=1e-6)
    (gradient,) = torch.autograd.grad(penalty, a)
    dominant = q[:, :1]
    assert torch.allclose(gradient, 2 * 0.9 * dominant @ dominant.T, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 0.5, -2.0])
def test_a_scaled_identity_has_its_gain_in_all_directions(scale: float) -> None:
    case = linear()
    problem = replace(case.problem, cell=lambda z, x: scale * z)
    at = replace(solved(problem, case.z0, case.x0), mu=random_multiplier(case.z0))
    assert SpectralPenalty().penalty(problem, at).item() == pytest.approx(scale**2)


def test_training_on_the_penalty_makes_a_cell_contract() -> None:
    theta = theta_of(seed=4, gain=3.0)
    case = tanh(theta=theta)
    optimizer = torch.optim.Adam(theta[:1], lr=0.05)

    def evaluations() -> FixedPoint:
        return Damped(max_nfe=200, tol=1e-8).solve(lambda z: case.problem.f(z, case.x0), case.z0)

    before = evaluations()
    for _ in range(60):
        optimizer.zero_grad()
        z = detach(evaluations().z)
        at = replace(solved(case.problem, z, case.x0), mu=random_multiplier(z))
        SpectralPenalty().penalty(case.problem, at).backward()
        optimizer.step()
    after = evaluations()
    assert (after.status == Status.CONVERGED).all()
    assert (after.nfe < before.nfe).all()


def test_a_sample_is_penalised_alone() -> None:
    case = tanh()
    found = JointAnderson(max_nfe=15).solve(case.problem, case.z0, case.x0)
    louder = replace(found, mu=next(iter(tensors_of(found.mu))) * torch.logspace(-3, 3, len(case.x0))[:, None])
    values = [SpectralPenalty().penalty(case.problem, at) for at in (found, louder)]
    assert torch.allclose(*values), "the length of the multiplier does not count"


def test_no_multiplier_costs_nothing() -> None:
    case = tanh()
    at = replace(solved(case.problem, case.z0, case.x0), mu=zeros(ALL, STATE))
    value = SpectralPenalty().penalty(case.problem, at)
    assert value.item() == 0
    assert all(not g.any() for g in torch.autograd.grad(value, case.theta, allow_unused=True) if g is not None)


def test_unusable_samples_are_left_out() -> None:
    gain = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    problem = quadratic_cell(gain)
    z = torch.stack([torch.full((50,), value, dtype=torch.float64) for value in (1.0, torch.nan, 2.0)])
    status = torch.tensor([int(Status.CONVERGED), int(Status.NON_FINITE), int(Status.DIVERGED)])
    at = replace(solved(problem, z, zeros(range(3), 1)), status=status, mu=z)
    value = SpectralPenalty().penalty(problem, at)
    assert value.item() == pytest.approx((1 + 4) / 2)
    (gradient,) = torch.autograd.grad(value, gain)
    assert gradient.item() == pytest.approx(5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"weight": -1.0}, "weight must be 0 or larger.*got -1.0 and 2"),
        ({"weight": float("nan")}, "weight must be 0 or larger"),
        ({"products": -1}, "products at least 0; got 1.0 and -1"),
    ],
)
def test_settings_that_cannot_be_meant(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        SpectralPenalty(**setting)


def test_the_type_of_the_multiplier_may_differ_from_that_of_the_cell() -> None:
    """Under autocast f is in half precision, the multiplier is not."""
    case = linear()
    at = solved(case.problem, case.z0.float(), case.x0.float())  # type: ignore[union-attr]
    a = case.theta[0].detach()

    def cell(z: Tensor, x: Tensor) -> Tensor:
        return (z @ a.float().T).bfloat16()

    problem = replace(case.problem, cell=cell)
    at = replace(at, mu=torch.randn(len(case.x0), STATE))
    exact = replace(case.problem, cell=lambda z, x: z @ a.float().T)
    low, high = (SpectralPenalty().penalty(one, at).item() for one in (problem, exact))
    assert low == pytest.approx(high, rel=0.05) and low != high
