"""Plain equilibria ``z = f(z)`` with an adjoint: the gradient of the fixed point, to all that f reaches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deqopt import Status
from deqopt.adjoints import (
    Adjoint,
    Envelope,
    Implicit,
    InputHeld,
    JacobianFree,
    Phantom,
    Unrolled,
    implicit_fixed_point,
)
from deqopt.errors import ProblemError
from deqopt.fixed_point import Anderson, Broyden, Damped, FixedPoint, FixedPointSolver

SAMPLES, STATE = 5, 6
SOLVERS = [Anderson(max_nfe=200, tol=1e-12), Broyden(max_nfe=200, tol=1e-12), Damped(max_nfe=400, tol=1e-12)]
ADJOINTS: list[Adjoint] = [Implicit(tol=1e-11), Phantom(steps=200, damping=1.0)]


def theta() -> tuple[Tensor, Tensor]:
    """A of norm 0.7, and b of every sample."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, STATE, generator=generator, dtype=torch.float64) for rows in (STATE, SAMPLES))
    a = 0.7 * a / torch.linalg.matrix_norm(a, 2)
    return a.requires_grad_(), b.requires_grad_()


def loss_of(found: FixedPoint) -> Tensor:
    z = found.z if isinstance(found.z, Tensor) else torch.cat(found.z, dim=1)
    return z.abs().pow(3).sum()


def closed_form(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    z = b @ torch.linalg.inv(torch.eye(STATE, dtype=a.dtype) - a).T
    return torch.autograd.grad(z.abs().pow(3).sum(), (a, b))


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda adjoint: type(adjoint).__name__)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_the_gradient_is_that_of_the_closed_form(solver: FixedPointSolver, adjoint: Adjoint, with_data: bool) -> None:
    a, b = theta()

    def f(z: Any, data: Any = None) -> Any:
        return z @ a.T + (b if data is None else data)

    found = solver.solve(f, torch.zeros_like(b), b if with_data else None, adjoint=adjoint)
    assert found.backward is not None and found.backward.nfe is None
    plain = solver.solve(f, torch.zeros_like(b), b if with_data else None)
    assert torch.equal(torch.as_tensor(found.z), torch.as_tensor(plain.z))
    for got, want in zip(torch.autograd.grad(loss_of(found), (a, b)), closed_form(a, b), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-8)
    assert found.backward.nfe is not None and (found.backward.nfe > 0).all()


def test_one_step_of_f_is_what_jacobian_free_differentiates() -> None:
    a, b = theta()
    found = SOLVERS[0].solve(lambda z: z @ a.T + b, torch.zeros_like(b), adjoint=JacobianFree())  # type: ignore[operator]
    z = torch.as_tensor(found.z).detach()
    want = torch.autograd.grad((z @ a.T + b).abs().pow(3).sum(), (a, b))
    for got, one in zip(torch.autograd.grad(loss_of(found), (a, b)), want, strict=True):
        torch.testing.assert_close(got, one, rtol=1e-7, atol=1e-8)


def test_a_state_of_two_tensors() -> None:
    a, b = theta()

    def f(z: Any) -> Any:
        image = torch.cat(z, dim=1) @ a.T + b
        return image[:, :2], image[:, 2:]

    start = (b.new_zeros(SAMPLES, 2), b.new_zeros(SAMPLES, 4))
    for got, want in zip(
        torch.autograd.grad(loss_of(SOLVERS[0].solve(f, start, adjoint=ADJOINTS[0])), (a, b)),
        closed_form(a, b),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-8)


def test_a_fixed_point_solver_of_the_backward_equation_finds_the_same() -> None:
    a, b = theta()
    z, report = implicit_fixed_point(
        lambda z: z @ a.T + b,  # type: ignore[operator]
        SOLVERS[0].solve(lambda z: z @ a.T + b, torch.zeros_like(b)).z,  # type: ignore[operator]
        Anderson(max_nfe=100, tol=1e-10),
    )
    got = torch.autograd.grad(torch.as_tensor(z).abs().pow(3).sum(), (a, b))
    for one, want in zip(got, closed_form(a, b), strict=True):
        torch.testing.assert_close(one, want, rtol=1e-6, atol=1e-7)
    assert report.status is not None and (report.status == Status.CONVERGED).all()


def test_a_sample_that_starts_as_nan_gives_no_gradient() -> None:
    a, b = theta()
    start = torch.zeros_like(b)
    start[2] = torch.nan
    found = SOLVERS[0].solve(lambda z: z @ a.T + b, start, adjoint=ADJOINTS[0])  # type: ignore[operator]
    got = torch.autograd.grad(torch.as_tensor(found.z).nan_to_num().abs().pow(3).sum(), (a, b))
    others = [0, 1, 3, 4]
    want = closed_form(a, b.detach()[others].requires_grad_())
    torch.testing.assert_close(got[0], want[0], rtol=1e-7, atol=1e-8)
    assert (got[1][2] == 0).all() and torch.allclose(got[1][others], want[1], rtol=1e-7)


@pytest.mark.parametrize("adjoint", [Envelope(), InputHeld(), Unrolled()], ids=lambda adjoint: type(adjoint).__name__)
def test_an_adjoint_of_joint_problems_is_refused(adjoint: Adjoint) -> None:
    a, b = theta()
    message = f"^{type(adjoint).__name__} is an adjoint of joint problems, .*: use Implicit, Phantom or JacobianFree$"
    with pytest.raises(ProblemError, match=message):
        SOLVERS[0].solve(lambda z: z @ a.T + b, torch.zeros_like(b), adjoint=adjoint)  # type: ignore[operator]


def test_without_autograd_an_adjoint_attaches_nothing() -> None:
    a, b = theta()
    with torch.no_grad():
        found = SOLVERS[0].solve(lambda z: z @ a.T + b, torch.zeros_like(b), adjoint=Envelope())  # type: ignore[operator]
    assert found.backward is None and not torch.as_tensor(found.z).requires_grad
