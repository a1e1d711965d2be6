"""JacobianFree and Phantom: against the truncated Neumann series written out with explicit matrices."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from catalogue import CASES, Case, flat, linear, tanh, theta_of
from deqopt import Equilibrium, Status
from deqopt.adjoints import Adjoint, Implicit, JacobianFree, Phantom
from deqopt.adjoints.linearised import Linearised
from deqopt.feasible import L2Ball
from deqopt.solvers import JointAnderson

EXACT = JointAnderson(max_nfe=800, tol=1e-13, history_size=12)
STEP = 0.05


def solved(case: Case) -> Equilibrium:
    return EXACT.solve(case.problem, case.z0, case.x0)


def loss_of(found: Equilibrium) -> Tensor:
    z, x, mu = flat(found.z), flat(found.x), flat(found.mu)
    return z.sin().sum() + (x * z[:, : x.shape[1]]).sum() + mu.cos().sum()


def gradient(case: Case, found: Equilibrium, adjoint: Adjoint) -> Tensor:
    attached = adjoint.attach(case.problem, found)
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss_of(attached), case.theta)])


def jacobians(system: Linearised) -> Tensor:
    """d_w F of every sample, (B, width, width), column by column of its transpose."""
    batch, width = system.residual.shape
    rows = [system.transposed(torch.eye(width, dtype=torch.float64)[i].expand(batch, width)) for i in range(width)]
    return torch.stack(rows, dim=1)


def by_matrices(case: Case, found: Equilibrium, steps: int, damping: float) -> Tensor:
    """``damping sum_i ((I + damping d_w F)^T)^i v`` by explicit powers, then ``lam^T d_theta F``."""
    system = Linearised.of_problem(case.problem, found.z, found.mu, found.x, STEP)
    matrix = jacobians(system).mT
    leaves = [part.detach().requires_grad_() for part in (found.z, found.mu, found.x)]  # type: ignore[union-attr]
    loss = loss_of(replace(found, z=leaves[0], mu=leaves[1], x=leaves[2]))
    v = torch.cat(torch.autograd.grad(loss, leaves), dim=1)
    once = torch.eye(matrix.shape[1], dtype=torch.float64) + damping * matrix
    series = sum(torch.linalg.matrix_power(once, i) for i in range(steps))
    assert isinstance(series, Tensor)
    lam = damping * (series @ v.unsqueeze(2)).squeeze(2)
    return torch.cat([part.flatten() for part in torch.autograd.grad(system.residual, case.theta, lam)])


@pytest.mark.parametrize(("steps", "damping"), [(1, 1.0), (1, 0.3), (4, 1.0), (7, 0.5)])
@pytest.mark.parametrize("name", ["linear", "linear_ball", "linear_box", "tanh_ball"])
def test_phantom_is_the_truncated_series(name: str, steps: int, damping: float) -> None:
    case = CASES[name]()
    found = solved(case)
    got = gradient(case, found, Phantom(steps, damping, STEP))
    assert torch.allclose(got, by_matrices(case, found, steps, damping), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 3, 6])
@pytest.mark.parametrize("name", ["linear_ball", "tanh"])
def test_phantom_is_what_unrolled_steps_from_the_solution_give(name: str, steps: int) -> None:
    """Geng et al. 2021, taken literally: run the steps with autograd on, from the solution as a constant."""
    case, damping = CASES[name](), 0.7
    found = solved(case)
    z, mu, x = found.z, found.mu, found.x
    for _ in range(steps):
        now = case.problem.evaluate_with_graph(z, x, mu)
        step = case.problem.feasible.project(x - STEP * now.g_x)
        z, mu, x = (old + damping * (new - old) for old, new in ((z, now.f), (mu, now.g_z), (x, step)))  # type: ignore[operator]
    parts = torch.autograd.grad(loss_of(replace(found, z=z, mu=mu, x=x)), case.theta)
    want = torch.cat([part.flatten() for part in parts])
    assert torch.allclose(gradient(case, found, Phantom(steps, damping, STEP)), want, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("step_size", [None, STEP])
def test_jacobian_free_is_one_undamped_step(step_size: float | None) -> None:
    case = CASES["tanh_ball"]()
    found = solved(case)
    one, other = (gradient(case, found, each) for each in (JacobianFree(step_size), Phantom(1, 1.0, step_size)))
    assert torch.equal(one, other)


@pytest.mark.parametrize("damping", [1.0, 0.6])
def test_the_error_falls_at_the_rate_of_the_spectral_radius(damping: float) -> None:
    case = linear()
    found = solved(case)
    system = Linearised.of_problem(case.problem, found.z, found.mu, found.x, STEP)
    once = torch.eye(system.residual.shape[1], dtype=torch.float64) + damping * jacobians(system)
    radius = float(torch.linalg.eigvals(once).abs().max())
    exact = gradient(case, found, Implicit(tol=1e-12))
    errors = {
        steps: float((gradient(case, found, Phantom(steps, damping, STEP)) - exact).norm()) for steps in (100, 200, 300)
    }
    assert 0.5 < radius < 0.98 and errors[300] < 1e-3 * float(exact.norm())
    for steps in (100, 200):
        rate = (errors[steps + 100] / errors[steps]) ** (1 / 100)
        assert math.isclose(rate, radius, rel_tol=0.02)


def test_more_steps_are_closer() -> None:
    case = tanh(range(4), L2Ball(0.3), theta_of(seed=2, gain=0.5))
    found = solved(case)
    exact = gradient(case, found, Implicit(tol=1e-11))
    errors = [float((gradient(case, found, Phantom(steps, 0.5)) - exact).norm()) for steps in (1, 5, 20, 80)]
    assert errors == sorted(errors, reverse=True) and errors[3] < 0.1 * errors[0]


def test_the_series_is_reported() -> None:
    case = linear()
    attached = Phantom(6, 1.0, STEP).attach(case.problem, solved(case))
    assert attached.backward is not None and attached.backward.residual is None
    torch.autograd.grad(loss_of(attached), case.theta)
    report = attached.backward
    assert report.residual is not None and report.status is not None and report.nfe is not None
    assert (report.nfe == 5).all() and (report.status == Status.OUT_OF_BUDGET).all()
    assert ((report.residual > 0) & (report.residual < 1)).all()
    free = JacobianFree(STEP).attach(case.problem, solved(case))
    torch.autograd.grad(loss_of(free), case.theta)
    assert free.backward is not None and free.backward.nfe is not None and (free.backward.nfe == 0).all()


def test_a_series_that_grows_warns() -> None:
    case = linear()
    attached = Phantom(30, 1.0, step_size=10.0).attach(case.problem, solved(case))
    with pytest.warns(
        UserWarning,
        match=r"^Phantom: the backward solve of 5 of 5 samples is a Neumann series that grows.*lower damping or",
    ):
        torch.autograd.grad(loss_of(attached), case.theta)
    assert attached.backward is not None and attached.backward.status is not None
    assert (attached.backward.status == Status.DIVERGED).all()
