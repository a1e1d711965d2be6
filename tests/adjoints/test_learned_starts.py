"""Learned starts: Unrolled differentiates the run from where it began, the others give a start no gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from catalogue import INPUT, STATE, linear_with_data, tanh
from deqopt import Equilibrium, JointProblem
from deqopt.adjoints import Adjoint, Envelope, Implicit, InputHeld, JacobianFree, Phantom, Unrolled
from deqopt.errors import ProblemError
from deqopt.feasible import Everywhere, FeasibleSet, L2Ball
from deqopt.solvers import JointAnderson, JointBroyden, JointSolver, SecantTracking, StepRule, Tracking
from outer_losses import check_slopes

PLAIN: dict[str, Any] = {"step_rule": StepRule.PLAIN, "step_size": 0.1}
RUNS: dict[str, JointSolver] = {
    "anderson": JointAnderson(max_nfe=8, tol=0.0, history_size=4, **PLAIN),
    "anderson_normalised": JointAnderson(max_nfe=6, tol=0.0, history_size=4),
    "broyden": JointBroyden(max_nfe=8, tol=0.0, history_size=4, **PLAIN),
    "tracking": Tracking(max_nfe=10, tol=0.0, step_size=0.4),
    "secant_tracking": SecantTracking(max_nfe=10, tol=0.0, step_size=0.2),
}
BOTH = pytest.mark.parametrize("adjoint", [Unrolled(), Unrolled(checkpoint=True)], ids=["plain", "checkpoint"])
OTHERS: list[Adjoint] = [Envelope(), Implicit(), InputHeld(), JacobianFree(), Phantom()]


def start() -> tuple[Tensor, Tensor, Tensor]:
    """z0, x0 and mu0; x0 is inside the ball of the tests."""
    generator = torch.Generator().manual_seed(5)
    return tuple(  # type: ignore[return-value]
        (0.1 * torch.randn(5, width, generator=generator, dtype=torch.float64)).requires_grad_()
        for width in (STATE, INPUT, STATE)
    )


def loss_of(found: Equilibrium) -> Tensor:
    assert isinstance(found.z, Tensor) and isinstance(found.mu, Tensor)
    return found.z.sin().sum() + found.x.cos().sum() + found.mu.cos().sum() + (0.1 * found.objective).sin().sum()


@BOTH
@pytest.mark.filterwarnings("ignore:Unrolled. the backward solve")
@pytest.mark.parametrize("feasible", [Everywhere(), L2Ball(0.5)], ids=["everywhere", "ball"])
@pytest.mark.parametrize("run", RUNS)
def test_against_finite_differences_of_the_run(run: str, feasible: FeasibleSet, adjoint: Unrolled) -> None:
    problem, at = tanh(feasible=feasible).problem, start()

    def value(z0: Tensor, x0: Tensor, mu0: Tensor) -> Tensor:
        return loss_of(RUNS[run].solve(problem, z0, x0, mu0=mu0))

    found = RUNS[run].solve(problem, at[0], at[1], mu0=at[2], adjoint=adjoint)
    gradients = torch.autograd.grad(loss_of(found), at)
    assert all(gradient.abs().max() > 1e-4 for gradient in gradients)
    check_slopes(value, at, gradients)


@BOTH
def test_an_encoder_of_the_start_is_learned_also_where_samples_leave_the_batch(adjoint: Unrolled) -> None:
    """Samples that have converged leave: their part of the gradient still comes back to their own start."""
    case = linear_with_data()
    solver = JointAnderson(max_nfe=40, tol=3e-2, **PLAIN)
    weight = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    shape = torch.linspace(-1, 1, 5 * INPUT, dtype=torch.float64).reshape(5, INPUT)

    def value(problem: JointProblem, factor: Tensor, adjoint: Adjoint | None = None) -> tuple[Tensor, Tensor]:
        found = solver.solve(problem, case.z0, factor * shape, adjoint=adjoint)
        return loss_of(found), found.nfe

    loss, nfe = value(case.problem, weight, adjoint)
    assert len(set(nfe.tolist())) > 2
    check_slopes(lambda at: value(case.problem, at)[0], [weight], torch.autograd.grad(loss, weight), rtol=1e-4)


@BOTH
def test_a_start_alone_is_enough_to_learn(adjoint: Unrolled) -> None:
    problem = JointProblem(lambda z, x: 0.5 * z + x, lambda z, x: (z - 1).square().sum(1))
    x0 = torch.zeros(2, 3, requires_grad=True)
    found = Tracking(max_nfe=8, step_size=0.1).solve(problem, torch.zeros(2, 3), x0, adjoint=adjoint)
    (gradient,) = torch.autograd.grad(found.x.sum(), x0)
    assert gradient.abs().max() > 0
    with pytest.raises(ProblemError, match="nothing to differentiate"):
        Tracking(max_nfe=8, step_size=0.1).solve(problem, torch.zeros(2, 3), x0.detach(), adjoint=adjoint)


@pytest.mark.parametrize("adjoint", OTHERS, ids=repr)
def test_the_optimum_depends_on_no_start(adjoint: Adjoint) -> None:
    case, at = tanh(), start()
    for one in (adjoint, None):
        found = RUNS["anderson"].solve(case.problem, at[0], at[1], mu0=at[2], adjoint=one)
        if one is not None:
            gradients = torch.autograd.grad(found.objective.sum(), at, allow_unused=True)
            assert all(one is None for one in gradients)
        else:
            assert not found.x.requires_grad


@pytest.mark.parametrize("run", RUNS)
def test_a_start_that_learns_changes_no_value(run: str) -> None:
    case, at = tanh(), start()
    plain = RUNS[run].solve(case.problem, at[0].detach(), at[1].detach(), mu0=at[2].detach())
    found = RUNS[run].solve(case.problem, at[0], at[1], mu0=at[2], adjoint=Unrolled())
    torch.testing.assert_close(found.x.detach(), plain.x)
