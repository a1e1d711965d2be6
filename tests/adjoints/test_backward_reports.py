"""What the backward solve of Implicit reports, refuses and survives: lost, singular and unsolved samples."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from adjoint_catalogue import ADJOINTS
from catalogue import CASES, INPUT, STATE, flat, linear, targets, theta_of, zeros
from deqopt import JointProblem, Status
from deqopt.adjoints import Adjoint, Envelope, Implicit, OnFailure, Unrolled
from deqopt.adjoints.linearised import Linearised
from deqopt.errors import BackwardError, ProblemError
from deqopt.feasible import FeasibleSet
from deqopt.regularizers import JacobianPenalty
from deqopt.solvers import JointAnderson
from outer_losses import EXACT, PRECISE, close, loss_of, solved

# -- no sample spoils another -----------------------------------------------------------------------------------------


def singular_problem(gain: float) -> tuple[JointProblem, tuple[Tensor, Tensor]]:
    """Linear samples, of which the second has ``(I - d_z f)`` near or exactly singular."""
    a, u, _ = (part.detach() for part in theta_of())
    u, b = u.clone().requires_grad_(), torch.ones(STATE, dtype=torch.float64, requires_grad=True)
    gains = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)[:, None]
    first = torch.eye(STATE, dtype=torch.float64)[0]
    y = targets(range(5))
    problem = JointProblem(
        lambda z, x: torch.where(gains > 0, gain * z * first, z @ a.T) + x @ u.T + b,
        lambda z, x: (z - y).square().sum(1) + x.square().sum(1),
    )
    return problem, (u, b)


@pytest.mark.parametrize("gain", [1.0, 1 + 1e-14, 1e200])
def test_a_singular_sample_leaves_the_others(gain: float) -> None:
    """The gradients of its neighbours are those of a batch in which it is harmless."""
    gradients = []
    for one in (gain, 0.5):
        problem, theta = singular_problem(one)
        found = EXACT.solve(singular_problem(0.5)[0], zeros(range(5), STATE), zeros(range(5), INPUT))
        attached = Implicit(tol=1e-10, max_nfe=60).attach(problem, found)
        keep = [0, 2, 3, 4]
        loss = loss_of(attached)[keep].sum() + 1e-300 * attached.z[1].sum()  # type: ignore[index]
        gradients.append(torch.autograd.grad(loss, theta))
    assert close(gradients[0], gradients[1], 1e-9)


def test_a_singular_system_is_reported() -> None:
    problem, theta = singular_problem(1.0)
    found = EXACT.solve(singular_problem(0.5)[0], zeros(range(5), STATE), zeros(range(5), INPUT))
    dependent = replace(problem, objective=lambda z, x: 0 * z.sum(1) + x.square().sum(1))
    attached = Implicit(tol=1e-10, max_nfe=60).attach(dependent, found)
    with pytest.warns(UserWarning, match=r"Implicit: the backward solve of 1 of 5 samples ended above tol=1e-10"):
        gradients = torch.autograd.grad(loss_of(attached).sum(), theta)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert attached.backward is not None and attached.backward.status is not None
    assert attached.backward.status.tolist() == [0, int(Status.OUT_OF_BUDGET), 0, 0, 0]


# -- reports ----------------------------------------------------------------------------------------------------------


def test_the_backward_pass_is_reported() -> None:
    case = CASES["tanh_ball"]()
    found = EXACT.solve(case.problem, case.z0, case.x0, adjoint=Implicit(tol=1e-6))
    report = found.backward
    assert report is not None and report.residual is None and report.nfe is None
    weight = torch.tensor([1.0, 0, 1, 1, 1], dtype=torch.float64)
    torch.autograd.grad((weight * loss_of(found)).sum(), case.theta)
    assert report.residual is not None and report.nfe is not None and report.status is not None
    assert (report.residual <= 1e-6).all() and (report.status == Status.CONVERGED).all()
    assert report.nfe[1] == 3, "what has no loss has nothing to solve; three products measure the step of x"
    assert (report.nfe[[0, 2, 3, 4]] > 5).all()
    assert found.to("cpu").backward is report


def test_the_reported_residual_is_the_true_one() -> None:
    case = CASES["conv"]()
    found = JointAnderson(max_nfe=60).solve(case.problem, case.z0, case.x0)
    system = Linearised.of_problem(case.problem, found.z, found.mu, found.x)
    v = torch.randn_like(system.residual)
    lam, report = Implicit(tol=1e-3).multiplier(system, v, torch.zeros(5, dtype=torch.bool))
    left = system.scale * (system.transposed(lam) + v)
    assert report.residual is not None
    assert torch.allclose(left.norm(dim=1) / (system.scale * v).norm(dim=1), report.residual, rtol=1e-2)
    assert (report.residual < 1e-3).all()


def test_a_budget_that_is_too_small_warns_once_or_raises() -> None:
    case = CASES["tanh_ball"]()
    found = EXACT.solve(case.problem, case.z0, case.x0)
    attached = Implicit(tol=1e-9, max_nfe=8).attach(case.problem, found)
    with pytest.warns(UserWarning, match=r"5 of 5 samples ended above tol=1e-09.*raise max_nfe") as caught:
        torch.autograd.grad(loss_of(attached).sum(), case.theta)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert attached.backward is not None and attached.backward.status is not None and attached.backward.nfe is not None
    assert (attached.backward.status == Status.OUT_OF_BUDGET).all() and (attached.backward.nfe <= 8).all()
    strict = Implicit(tol=1e-9, max_nfe=8, on_failure=OnFailure.RAISE).attach(case.problem, found)
    with pytest.raises(BackwardError, match="5 of 5 samples ended above"):
        torch.autograd.grad(loss_of(strict).sum(), case.theta)


def test_memory_that_is_too_small_for_one_go_still_gets_there() -> None:
    case = CASES["tanh_ball"]()
    found = EXACT.solve(case.problem, case.z0, case.x0)
    gradients = [
        torch.autograd.grad(loss_of(adjoint.attach(case.problem, found)).sum(), case.theta)
        for adjoint in (PRECISE, Implicit(tol=1e-11, restart=12, max_nfe=2000))
    ]
    assert close(gradients[0], gradients[1], 1e-8)


ONCE = [one for one in ADJOINTS if one != Unrolled()]


@pytest.mark.parametrize("adjoint", ONCE, ids=repr)
@pytest.mark.parametrize("part", ["z", "objective", "both"])
def test_a_second_derivative_is_refused(adjoint: Adjoint, part: str) -> None:
    """create_graph=True alone is not: the first gradient is the same with it."""
    case = linear()
    found = EXACT.solve(case.problem, case.z0, case.x0, adjoint=adjoint)
    if part == "z" and "z" in found.held:
        return
    loss = torch.zeros((), dtype=torch.float64)
    if part in ("z", "both") and "z" not in found.held:
        loss = loss + flat(found.z).sin().sum()
    if part in ("objective", "both"):
        loss = loss + found.objective.sin().sum()
    plain = torch.autograd.grad(loss, case.theta, retain_graph=True)
    gradients = torch.autograd.grad(loss, case.theta, create_graph=True)
    assert all(torch.allclose(one, other, rtol=1e-12) for one, other in zip(gradients, plain, strict=True))
    for gradient in gradients:
        with pytest.raises(ProblemError, match="cannot be differentiated again"):
            torch.autograd.grad(gradient.square().sum(), case.theta, retain_graph=True)


def test_a_second_derivative_of_what_is_plain_beside_it_is_not() -> None:
    """A gradient penalty on other parts of the network, with eq.objective in the same loss."""
    case = linear()
    found = EXACT.solve(case.problem, case.z0, case.x0, adjoint=Envelope())
    a = case.theta[0]
    (slope,) = torch.autograd.grad(a.pow(3).sum(), a, create_graph=True)
    loss = found.objective.sum() + slope.square().sum() + JacobianPenalty().penalty(case.problem, found)
    assert all(one.isfinite().all() for one in torch.autograd.grad(loss, case.theta))


def test_a_projection_that_autograd_cannot_follow_is_refused() -> None:
    class Opaque(FeasibleSet):
        def project(self, x: Tensor) -> Tensor:
            return x.detach().clamp(-1, 1)

    case = linear()
    found = solved(case)
    with pytest.raises(ProblemError, match=r"Opaque\.project cannot be differentiated"):
        Implicit().attach(replace(case.problem, feasible=Opaque()), found)
