"""What holds for every penalty: what it teaches, which samples count, which settings are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from catalogue import STATE, tanh, theta_of, zeros
from deqopt import Status
from deqopt.errors import ProblemError
from deqopt.fixed_point import Damped, FixedPoint
from deqopt.regularizers import JacobianPenalty, Regularizer, SpectralPenalty
from deqopt.state import detach
from penalty_points import quadratic_cell, random_like, solved


@pytest.mark.parametrize("penalty", [JacobianPenalty(probes=2), SpectralPenalty()], ids=repr)
def test_training_on_it_makes_a_cell_contract(penalty: Regularizer) -> None:
    theta = theta_of(seed=4, gain=3.0)
    case = tanh(theta=theta)
    optimizer = torch.optim.Adam(theta[:1], lr=0.05)

    def evaluations() -> FixedPoint:
        return Damped(max_nfe=200, tol=1e-8).solve(lambda z: case.problem.f(z, case.x0), case.z0)

    before = evaluations()
    for _ in range(60):
        optimizer.zero_grad()
        z = detach(evaluations().z)
        penalty.penalty(case.problem, replace(solved(case.problem, z, case.x0), mu=random_like(z))).backward()
        optimizer.step()
    after = evaluations()
    assert (after.status == Status.CONVERGED).all()
    assert (after.nfe < before.nfe).all()


@pytest.mark.parametrize("penalty", [JacobianPenalty(probes=100), SpectralPenalty()], ids=repr)
def test_unusable_samples_are_left_out(penalty: Regularizer) -> None:
    """Their share is not counted, and what they hold is not seen."""
    gain = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    problem = quadratic_cell(gain)
    z = torch.stack([torch.full((50,), value, dtype=torch.float64) for value in (1.0, torch.nan, 2.0)])
    status = torch.tensor([int(Status.CONVERGED), int(Status.NON_FINITE), int(Status.DIVERGED)])
    value = penalty.penalty(problem, replace(solved(problem, z, zeros(range(3), 1)), status=status))
    near = 0.05 if isinstance(penalty, JacobianPenalty) else 1e-6
    assert value.item() == pytest.approx((1 + 4) / 2, rel=near)
    assert torch.autograd.grad(value, gain)[0].item() == pytest.approx(5, rel=near)


@pytest.mark.parametrize("penalty", [JacobianPenalty(), SpectralPenalty()], ids=repr)
def test_a_batch_without_usable_samples_costs_nothing(penalty: Regularizer) -> None:
    problem = quadratic_cell(torch.tensor(1.0, dtype=torch.float64, requires_grad=True))
    z, x = zeros(range(5), STATE) + torch.nan, zeros(range(5), 1)
    assert penalty.penalty(problem, solved(problem, z, x, Status.NON_FINITE)).item() == 0


@pytest.mark.parametrize(
    ("kind", "setting", "right"),
    [
        (JacobianPenalty, {"weight": -1.0}, "0 or larger"),
        (SpectralPenalty, {"weight": math.nan}, "0 or larger"),
        (JacobianPenalty, {"weight": math.inf}, "a finite number"),
        (JacobianPenalty, {"probes": 0}, "at least 1"),
        (JacobianPenalty, {"visits": -1}, "0 or larger"),
        (SpectralPenalty, {"products": -1}, "0 or larger"),
    ],
)
def test_settings_that_cannot_be_meant(kind: Any, setting: dict[str, Any], right: str) -> None:
    ((name, value),) = setting.items()
    with pytest.raises(ProblemError, match=f"^{kind.__name__}: {name} must be {right}, got {value}$"):
        kind(**setting)
