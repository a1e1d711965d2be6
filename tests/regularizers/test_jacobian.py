"""The Jacobian penalty: what it estimates, what it teaches, and whose points it is taken at."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from catalogue import ALL, STATE, linear, linear_tuple, tanh, zeros
from deqopt import JointProblem, Status
from deqopt.regularizers import JacobianPenalty
from deqopt.solvers import JointAnderson
from penalty_points import quadratic_cell, solved


@pytest.mark.parametrize("make", [linear, linear_tuple])
def test_expectation_is_the_mean_square_of_the_jacobian(make: Callable[[], Any]) -> None:
    case = make()
    a = case.theta[0].detach()
    probes, rounds = 20, 60
    samples = len(ALL) * probes * rounds
    at = solved(case.problem, case.z0, case.x0)
    mean = sum(JacobianPenalty(probes=probes).penalty(case.problem, at).item() for _ in range(rounds)) / rounds
    deviation = (2 * (a.T @ a).square().sum()).sqrt() / STATE / samples**0.5
    assert abs(mean - a.square().sum() / STATE) < 4.5 * deviation


@pytest.mark.parametrize("scale", [0.0, 0.5, -2.0])
def test_a_scaled_identity_is_measured_up_to_the_length_of_the_probe(scale: float) -> None:
    """(s I)^T v has the square s^2 |v|^2, and the expectation of |v|^2 / n is 1."""
    problem = JointProblem(lambda z, x: scale * z, lambda z, x: z.sum(1))
    torch.manual_seed(5)
    value = JacobianPenalty(probes=2).penalty(problem, solved(problem, torch.zeros(3, 7), torch.zeros(3, 1)))
    torch.manual_seed(5)
    length = torch.stack([torch.randn(3, 7) for _ in range(2)]).square().mean()
    assert value.item() == pytest.approx(scale**2 * length.item())


def test_gradient_shrinks_the_jacobian() -> None:
    case = linear()
    a = case.theta[0]
    at = solved(case.problem, case.z0, case.x0)
    (gradient,) = torch.autograd.grad(JacobianPenalty(probes=400).penalty(case.problem, at), a)
    wanted = 2 * a.detach() / STATE
    assert torch.cosine_similarity(gradient.flatten(), wanted.flatten(), dim=0) > 0.99
    assert gradient.norm() == pytest.approx(wanted.norm().item(), rel=0.1)


def test_visits_are_used() -> None:
    gain = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    problem, x = quadratic_cell(gain), zeros(ALL, 1)
    at_zero = solved(problem, zeros(ALL, 50), x)
    penalty = JacobianPenalty(probes=50, visits=1)
    assert penalty.penalty(problem, at_zero).item() == 0
    for size in (1.0, 3.0):
        visited = replace(at_zero, visited=((zeros(ALL, 50) + size, x),))
        value = penalty.penalty(problem, visited)
        assert value.item() == pytest.approx(size**2 / 2, rel=0.05), "the mean over equilibrium and visit"
        assert torch.autograd.grad(value, gain)[0].item() == pytest.approx(size**2, rel=0.05)


def test_solver_and_penalty_work_together() -> None:
    case = tanh()
    found = JointAnderson(max_nfe=15).solve(case.problem, case.z0, case.x0, visits=3)
    assert len(found.visited) == 3
    value = JacobianPenalty(visits=3).penalty(case.problem, found)
    assert value > 0 and all(g.isfinite().all() for g in torch.autograd.grad(value, case.theta))


def test_a_sample_that_diverged_does_not_poison_the_penalty() -> None:
    case = tanh()
    a, u, b = case.theta
    victim = torch.tensor([[False], [True], [False], [False], [False]])

    def cell(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ a.T + x @ u.T + b) + torch.where(victim, z * z + 3, 0.0)

    problem = replace(case.problem, cell=cell)
    found = JointAnderson(max_nfe=40, damping=1.0, history_size=1).solve(problem, case.z0, case.x0, visits=40)
    assert found.status[1] == Status.DIVERGED
    value = JacobianPenalty(visits=40).penalty(problem, found)
    assert value.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(value, case.theta))
