"""How much a gradient grows on its way back through a solve: what is reported, and who is warned of it."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from catalogue import CASES, Case, linear_with_data, tanh
from deqopt import Equilibrium, JointProblem
from deqopt.adjoints import Implicit, Unrolled
from deqopt.adjoints.growth import ERRATIC
from deqopt.solvers import JointAnderson, StepRule, Tracking
from deqopt.state import tensors_of

STATE, INPUT, SAMPLES = 30, 6, 8
BOTH = pytest.mark.parametrize("adjoint", [Unrolled(), Unrolled(checkpoint=True)], ids=["plain", "checkpoint"])
SHORT = JointAnderson(max_nfe=8, tol=0.0, step_rule=StepRule.PLAIN, step_size=0.1)


def growth_of(found: Equilibrium) -> Tensor:
    assert found.backward is not None and found.backward.growth is not None
    return found.backward.growth


def erratic(rows: slice = slice(None), factor: float = 1.0) -> tuple[Case, Tensor]:
    """A tanh cell of spectral radius 0.9, whose optima JointAnderson reaches by detours; every sample has a bias."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    a, u, y = normal(STATE, STATE), normal(STATE, INPUT) / INPUT**0.5, normal(SAMPLES, STATE).clamp(-0.9, 0.9)[rows]
    a = 0.9 * a / torch.linalg.eigvals(a).abs().max()
    b = (0.3 * normal(SAMPLES, STATE)[rows]).requires_grad_()
    problem = JointProblem(
        lambda z, x, data: torch.tanh(z @ a.T + x @ u.T + data[1]),
        lambda z, x, data: factor * ((z - data[0]).square().sum(1) + 0.1 * x.square().sum(1)),
        data=(y, b),
    )
    count = len(y)
    z0, x0 = (torch.zeros(count, width, dtype=torch.float64) for width in (STATE, INPUT))
    return Case(problem, z0, x0, (b,)), b


def loss_of(found: Equilibrium) -> Tensor:
    return torch.stack([part.sin().flatten(1).sum(1) for part in (*tensors_of(found.z), found.x)]).sum(0)


WANDERS = JointAnderson(max_nfe=300, tol=1e-5)


@BOTH
def test_it_tells_how_wrong_the_gradient_of_a_converged_solve_is(adjoint: Unrolled) -> None:
    """Sample by sample, against the implicit gradient at the same point: where it warns the gradient is wrong, and
    where it does not, it is not ten times too long. Samples that have converged leave the batch."""
    case, b = erratic()
    found = WANDERS.solve(case.problem, case.z0, case.x0, adjoint=adjoint)
    exact = Implicit(tol=1e-9, max_nfe=500).attach(case.problem, WANDERS.solve(case.problem, case.z0, case.x0))
    assert found.converged.any()
    (want,) = torch.autograd.grad(loss_of(exact).sum(), b)
    with pytest.warns(UserWarning) as caught:
        (got,) = torch.autograd.grad(loss_of(found).sum(), b)
    error = ((got - want).norm(dim=1) / want.norm(dim=1))[found.converged]
    growth = growth_of(found)[found.converged]
    assert (growth > ERRATIC).any() and (error[growth > ERRATIC] > 0.5).all()
    assert (error[growth <= ERRATIC] < ERRATIC).all()
    failed = int((growth_of(found) > ERRATIC).sum())
    assert [str(one.message) for one in caught] == [
        f"Unrolled: the backward solve of {failed} of {SAMPLES} samples made the gradient up to "
        f"{float(growth_of(found).max()):.0e} times longer, so the gradient says little about the solution: use "
        "Implicit(), or unroll fewer evaluations"
    ]


@pytest.mark.filterwarnings("ignore:Unrolled. the backward solve")
def test_a_sample_has_the_growth_that_it_has_alone() -> None:
    """Also where samples leave the batch, and others have no loss."""
    case, _ = erratic()
    solver = JointAnderson(max_nfe=60, tol=1e-2)
    found = solver.solve(case.problem, case.z0, case.x0, adjoint=Unrolled())
    assert len(set(found.nfe.tolist())) > 2
    loss_of(found).sum().backward()
    for row in (0, 5):
        part, _ = erratic(slice(row, row + 1))
        alone = solver.solve(part.problem, part.z0, part.x0, adjoint=Unrolled())
        loss_of(alone).sum().backward()
        torch.testing.assert_close(growth_of(alone)[0], growth_of(found)[row], rtol=1e-3, atol=0)
    weights = torch.zeros(SAMPLES, dtype=torch.float64)
    weights[2] = 1.0
    found = solver.solve(case.problem, case.z0, case.x0, adjoint=Unrolled())
    (weights * loss_of(found)).sum().backward()
    assert growth_of(found).isfinite().tolist() == (weights > 0).tolist()


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_unit_of_the_objective_does_not_matter(factor: float) -> None:
    solver, growths = JointAnderson(max_nfe=12, tol=0.0), []
    for unit in (1.0, factor):
        case, _ = erratic(factor=unit)
        found = solver.solve(case.problem, case.z0, case.x0, adjoint=Unrolled())
        loss_of(found).sum().backward()
        growths.append(growth_of(found))
    torch.testing.assert_close(growths[0], growths[1], rtol=1e-3, atol=0)


@BOTH
@pytest.mark.parametrize("name", ["linear", "linear_tuple", "tanh_ball", "conv"])
def test_a_short_run_is_reported_and_silent(name: str, adjoint: Unrolled) -> None:
    case = CASES[name]()
    found = SHORT.solve(case.problem, case.z0, case.x0, adjoint=adjoint)
    assert found.backward is not None and found.backward.growth is None
    loss_of(found).sum().backward(retain_graph=True)
    growth = growth_of(found)
    assert growth.shape == (5,) and (growth >= 1).all() and (growth < ERRATIC).all()
    assert found.backward.residual is None
    (found.objective.sum() + 0 * found.x.sum()).backward(retain_graph=True)
    assert (growth_of(found) >= 1).all()
    loss_of(found).sum().backward()
    torch.testing.assert_close(growth_of(found), growth)


def test_a_run_that_returns_its_start_has_none() -> None:
    case = tanh()
    at = SHORT.solve(case.problem, case.z0, case.x0)
    found = Tracking(max_nfe=8, tol=1e9, step_size=0.1).solve(case.problem, at.z, at.x, mu0=at.mu, adjoint=Unrolled())
    (found.objective.sum()).backward()
    assert growth_of(found).isnan().all() or (growth_of(found) == 1).all()


def test_a_second_derivative_still_works() -> None:
    case = linear_with_data()
    found = Tracking(max_nfe=8, tol=0.0, step_size=0.1).solve(case.problem, case.z0, case.x0, adjoint=Unrolled())
    gradients = torch.autograd.grad(loss_of(found).sum(), case.theta, create_graph=True)
    second = torch.autograd.grad(gradients[0].square().sum(), case.theta)
    assert all(one.isfinite().all() and one.abs().max() > 0 for one in second)


def test_a_short_budget_of_a_wanderer_does_not_warn() -> None:
    """The advice that the warning gives."""
    case, _ = erratic()
    found = SHORT.solve(case.problem, case.z0, case.x0, adjoint=Unrolled())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_of(found).sum().backward()
