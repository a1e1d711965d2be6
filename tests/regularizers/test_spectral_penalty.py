"""The spectral penalty: the gain in the dominant direction of the adjoint iteration, from the multiplier on."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from catalogue import ALL, STATE, linear, linear_tuple, tanh, zeros
from deqopt import JointProblem
from deqopt.regularizers import SpectralPenalty
from deqopt.solvers import JointAnderson
from deqopt.state import tensors_of
from penalty_points import random_like, solved


@pytest.mark.parametrize("products", [0, 1, 4])
@pytest.mark.parametrize("make", [linear, linear_tuple])
def test_penalty_is_the_gain_after_some_products(make: Callable[[], Any], products: int) -> None:
    """For ``f = A z + ...`` it is ``|A^T u|^2`` with ``u = (A^T)^p mu``, of length one."""
    case = make()
    a = case.theta[0].detach()
    mu = random_like(case.z0)
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
    at = replace(solved(problem, case.z0, case.x0), mu=random_like(case.z0))
    assert SpectralPenalty().penalty(problem, at).item() == pytest.approx(scale**2)


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
