"""Gradients to theta: against closed forms and finite differences, to the precision of the solve."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from catalogue import CASES, SOLVERS, WITH_TRUTH, flat, linear_with_data, tanh, targets, theta_of, zeros
from deqopt import JointProblem
from deqopt.adjoints import Adjoint, Envelope, Implicit, JacobianFree, Phantom, Unrolled
from deqopt.errors import ProblemError
from deqopt.feasible import Box, Everywhere, FeasibleSet, L2Ball
from deqopt.fixed_point import Anderson
from deqopt.solvers import JointAnderson, solve_exactly
from deqopt.state import tensors_of
from deqopt.testing.trial import same_bits
from outer_losses import check_slopes

ALL_ADJOINTS = [Envelope(), Implicit(), JacobianFree(), Phantom(), Unrolled(), Unrolled(checkpoint=True)]
EXACT = JointAnderson(max_nfe=500, tol=1e-10, history_size=12)


@pytest.mark.parametrize("name", WITH_TRUTH)
def test_envelope_is_the_total_derivative_of_the_optimal_value(name: str) -> None:
    """The reference differentiates the closed form; without constraint through the optimal x as well."""
    case = CASES[name]()
    found = EXACT.solve(case.problem, case.z0, case.x0, adjoint=Envelope())
    assert found.converged.all() and case.truth is not None
    gradients = torch.autograd.grad(found.objective.sum(), case.theta)
    for got, want in zip(gradients, case.truth.gradients, strict=True):
        assert torch.allclose(got, want, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ["linear_ball", "linear_tuple"])
def test_envelope_of_one_sample_is_its_own(name: str) -> None:
    """A weighted sum of objectives has the weighted sum of the samples' gradients."""
    case, part = CASES[name](), CASES[name](rows=[3])
    weights = torch.tensor([0.0, 0, 0, 2, 0], dtype=torch.float64)
    found = EXACT.solve(case.problem, case.z0, case.x0, adjoint=Envelope())
    gradients = torch.autograd.grad((weights * found.objective).sum(), case.theta)
    assert part.truth is not None
    for got, want in zip(gradients, part.truth.gradients, strict=True):
        assert torch.allclose(got, 2 * want, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("feasible", [Everywhere(), L2Ball(0.5), Box(-0.2, 0.3)])
def test_envelope_against_finite_differences(feasible: FeasibleSet) -> None:
    """A contractive cell with curvature; every solve starts at the first solution, so that it stays on its branch."""
    theta, rows = theta_of(seed=2, gain=0.5), range(4)  # without constraint the fifth has no minimum nearby

    def value(*theta: Tensor) -> Tensor:
        case = tanh(rows, feasible=feasible, theta=theta)  # type: ignore[arg-type]
        found = EXACT.solve(case.problem, anchor.z, anchor.x, mu0=anchor.mu)
        assert found.converged.all()
        return solve_exactly(case.problem, found, Anderson(max_nfe=100, tol=1e-14)).objective.sum()

    case = tanh(rows, feasible=feasible, theta=theta)
    anchor = EXACT.solve(case.problem, case.z0, case.x0, adjoint=Envelope())
    gradients = torch.autograd.grad(anchor.objective.sum(), theta)
    for _ in range(3):
        check_slopes(value, theta, gradients, eps=1e-4, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adjoint", ALL_ADJOINTS, ids=str)
@pytest.mark.parametrize("name", ["linear_tuple", "linear_with_data", "conv"])
def test_attaching_changes_no_value(name: str, adjoint: Adjoint) -> None:
    case = CASES[name]()
    solver = replace(SOLVERS["tracking"], max_nfe=20)
    plain = solver.solve(case.problem, case.z0, case.x0)
    attached = solver.solve(case.problem, case.z0, case.x0, adjoint=adjoint)
    for one in ("z", "x", "mu", "objective", "residual", "status", "nfe"):
        value, want = getattr(attached, one), getattr(plain, one)
        if isinstance(adjoint, Unrolled):  # derivatives that may be differentiated again are computed by other kernels
            pairs = zip(tensors_of(value), tensors_of(want), strict=True)
            assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in pairs), one
        else:
            assert same_bits(value, want), one
    assert attached.objective.requires_grad and not plain.objective.requires_grad
    assert attached.x.requires_grad and ("x" in attached.held) is isinstance(adjoint, Envelope)
    gradients = torch.autograd.grad(attached.objective.sum(), case.theta)
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in gradients)


LEARNS_AS_IT_RUNS = [Envelope(), Unrolled(), Unrolled(checkpoint=True)]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("adjoint", LEARNS_AS_IT_RUNS, ids=str)
def test_cached_parametrizations(adjoint: Adjoint, inside: bool) -> None:
    """Weight norms computed once for a solve still carry the gradient to what they are made of; the backward pass may
    run inside or outside of the block that remembers them."""
    gradients = []
    for cached in (False, True):
        case = CASES["conv"]()
        with ExitStack() as block:
            if cached:
                block.enter_context(parametrize.cached())
            solver = replace(SOLVERS["tracking"], max_nfe=12, tol=0.0)
            found = solver.solve(case.problem, case.z0, case.x0, adjoint=adjoint)
            free = [name for name in ("z", "x", "mu") if name not in found.held]
            loss = found.objective.sum() + sum(flat(getattr(found, name)).sin().sum() for name in free)
            if not inside:
                block.close()
            gradients.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, case.theta)]))
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-3 * float(gradients[0].abs().max()))


@pytest.mark.parametrize("exact_first", [False, True])
def test_envelope_under_autocast_reaches_all_parameters(exact_first: bool) -> None:
    """Also after an exact solve, which evaluates f under no_grad: autocast remembers the weights that it has cast."""
    case = CASES["conv"]()
    solver = JointAnderson(max_nfe=6)
    with torch.autocast("cpu", torch.bfloat16):
        if exact_first:
            solve_exactly(case.problem, solver.solve(case.problem, case.z0, case.x0))
        found = solver.solve(case.problem, case.z0, case.x0, adjoint=Envelope())
    gradients = torch.autograd.grad(found.objective.sum(), case.theta)
    plain = solver.solve(case.problem, case.z0, case.x0, adjoint=Envelope())
    wanted = torch.autograd.grad(plain.objective.sum(), case.theta)
    got, want = (torch.cat([gradient.flatten() for gradient in one]) for one in (gradients, wanted))
    assert torch.cosine_similarity(got, want, dim=0) > 0.98


@pytest.mark.parametrize("adjoint", LEARNS_AS_IT_RUNS, ids=str)
def test_data_may_learn_too(adjoint: Adjoint) -> None:
    """Data carry their own gradient, d J* / d y; also where they are no leaf, as an encoder's output."""
    case, y = linear_with_data(), targets(range(5))
    weights = torch.ones_like(y).requires_grad_()
    found = EXACT.solve(replace(case.problem, data={"target": weights * y}), case.z0, case.x0, adjoint=adjoint)
    (gradient,) = torch.autograd.grad(found.objective.sum(), weights)
    assert torch.allclose(gradient, 2 * (y - flat(found.z).detach()) * y, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("adjoint", ALL_ADJOINTS, ids=str)
def test_nothing_to_differentiate(adjoint: Adjoint) -> None:
    problem = JointProblem(lambda z, x: 0.5 * z + x, lambda z, x: (z - 1).square().sum(1))
    with pytest.raises(ProblemError, match="nothing to differentiate: neither cell nor objective reaches a parameter"):
        JointAnderson().solve(problem, torch.zeros(2, 3), torch.zeros(2, 3), adjoint=adjoint)


@pytest.mark.parametrize("adjoint", ALL_ADJOINTS, ids=str)
def test_no_adjoint_no_gradient(adjoint: Adjoint) -> None:
    case = CASES["linear"]()
    found = JointAnderson().solve(case.problem, case.z0, case.x0)
    with torch.no_grad():
        quiet = JointAnderson().solve(case.problem, case.z0, case.x0, adjoint=adjoint)
    for one in (found, quiet):
        assert not any(value.requires_grad for value in (one.z, one.x, one.mu, one.objective))  # type: ignore[union-attr]


def test_a_theta_of_the_objective_alone_gets_its_gradient() -> None:
    weight = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    problem = JointProblem(
        lambda z, x: 0.5 * z + 0.5 * x, lambda z, x: weight * (z - 1).square().sum(1) + x.square().sum(1)
    )
    found = EXACT.solve(problem, zeros([0], 1), zeros([0], 1), adjoint=Envelope())
    (gradient,) = torch.autograd.grad(found.objective.sum(), weight)
    # z = x, so J* = min w (x - 1)^2 + x^2 = w / (w + 1)
    assert found.objective.item() == pytest.approx(0.75)
    assert gradient.item() == pytest.approx(1 / 16)
