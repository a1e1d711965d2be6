"""The gradient of the algorithm: against finite differences of the run as it is, and with less memory."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch import Tensor

from catalogue import CASES, Case, flat, linear, tanh, targets, theta_of
from deqopt import Equilibrium, JointProblem
from deqopt.adjoints import Unrolled
from deqopt.adjoints.recorded import RecordedProblem
from deqopt.errors import ProblemError
from deqopt.feasible import Everywhere, FeasibleSet, L2Ball
from deqopt.fixed_point import MixingType
from deqopt.solvers import JointAnderson, JointSolver, StepRule, Tracking
from outer_losses import check_slopes

RUNS: dict[str, JointSolver] = {
    "anderson_I": JointAnderson(max_nfe=10, tol=0.0, history_size=4, kind=MixingType.I, step_rule=StepRule.PLAIN),
    "anderson_II": JointAnderson(max_nfe=10, tol=0.0, history_size=4, kind=MixingType.II, step_rule=StepRule.PLAIN),
    "anderson_normalised": JointAnderson(max_nfe=6, tol=0.0, history_size=4),
    "tracking": Tracking(max_nfe=14, tol=0.0, step_size=0.4),
}
BOTH = pytest.mark.parametrize("adjoint", [Unrolled(), Unrolled(checkpoint=True)], ids=["plain", "checkpoint"])


def loss_of(found: Equilibrium) -> Tensor:
    z, x, mu = flat(found.z), flat(found.x), flat(found.mu)
    return z.sin().sum() + (x * z[:, : x.shape[1]]).sum() + mu.cos().sum() + (0.1 * found.objective).sin().sum()


@BOTH
@pytest.mark.parametrize("feasible", [Everywhere(), L2Ball(0.5)])
@pytest.mark.parametrize("run", RUNS)
def test_finite_differences_of_a_run_that_has_not_converged(run: str, feasible: FeasibleSet, adjoint: Unrolled) -> None:
    def value(*theta: Tensor) -> Tensor:
        case = tanh(feasible=feasible, theta=theta)  # type: ignore[arg-type]
        return loss_of(RUNS[run].solve(case.problem, case.z0, case.x0))

    theta = theta_of(seed=2, gain=0.8)
    case = tanh(feasible=feasible, theta=theta)
    found = RUNS[run].solve(case.problem, case.z0, case.x0, adjoint=adjoint)
    assert (found.residual > 1e-4).any() and torch.equal(loss_of(found), value(*theta))
    check_slopes(value, theta, torch.autograd.grad(loss_of(found), theta))


@BOTH
def test_run_to_convergence_it_is_the_total_derivative(adjoint: Unrolled) -> None:
    """Of the objective too, which carries no envelope gradient here."""
    case = linear()
    solver = JointAnderson(max_nfe=500, tol=1e-13, history_size=12)
    found = solver.solve(case.problem, case.z0, case.x0, adjoint=adjoint)
    assert case.truth is not None
    for got, want in zip(torch.autograd.grad(found.objective.sum(), case.theta), case.truth.gradients, strict=True):
        assert torch.allclose(got, want, rtol=1e-7, atol=1e-8)


@dataclass(eq=False)
class Kept:
    """A tensor that autograd keeps, for as long as it does."""

    part: Tensor


def saved(case: Case, solver: JointSolver, adjoint: Unrolled) -> tuple[int, Tensor]:
    """How many numbers autograd keeps for the backward pass after the solve, and the gradient."""
    kept: WeakSet[Kept] = WeakSet()

    def pack(part: Tensor) -> Kept:
        one = Kept(part)
        kept.add(one)
        return one

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.part):
        found = solver.solve(case.problem, case.z0, case.x0, adjoint=adjoint)
        loss = loss_of(found)
    storages = {one.part.untyped_storage().data_ptr(): one.part for one in kept}
    numbers = sum(part.untyped_storage().nbytes() // part.element_size() for part in storages.values())
    return numbers, torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, case.theta)])


def wide_case() -> Case:
    """A cell whose hidden layer is a hundred times wider than its state."""
    generator = torch.Generator().manual_seed(0)
    up, down, u = (
        (torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[0] ** 0.5 / 2).requires_grad_()
        for shape in ((6, 600), (600, 6), (4, 6))
    )
    y = targets(range(5))
    problem = JointProblem(
        lambda z, x: torch.tanh(z @ up) @ down + x @ u, lambda z, x: (z - y).square().sum(1) + x.square().sum(1)
    )
    return replace(tanh(), problem=problem, theta=(up, down, u))


def test_checkpoints_keep_little_more_than_the_inputs_of_every_evaluation() -> None:
    short, long = (Tracking(max_nfe=count, tol=0.0, step_size=0.3) for count in (12, 24))
    growth, gradients = {}, {}
    for checkpoint in (False, True):
        before, _ = saved(wide_case(), short, Unrolled(checkpoint))
        after, gradients[checkpoint] = saved(wide_case(), long, Unrolled(checkpoint))
        growth[checkpoint] = (after - before) / 12
    assert growth[False] > 3 * 5 * 600 and growth[True] < growth[False] / 10
    assert torch.allclose(gradients[True], gradients[False], rtol=1e-9)


def test_checkpoints_evaluate_again_under_the_same_autocast() -> None:
    gradients = []
    for checkpoint in (False, True):
        case = CASES["conv"]()
        with torch.autocast("cpu", torch.bfloat16):
            found = Tracking(max_nfe=8, tol=0.0, step_size=0.3).solve(
                case.problem, case.z0, case.x0, adjoint=Unrolled(checkpoint)
            )
        gradient = torch.autograd.grad(loss_of(found), case.theta)
        gradients.append(torch.cat([part.flatten() for part in gradient]))
    assert gradients[0].norm() > 0
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.999


@BOTH
def test_what_the_cell_closes_over_need_not_be_a_leaf(adjoint: Unrolled) -> None:
    gradients = []
    for shared in (True, False):
        a, u, b = theta_of(seed=2, gain=0.8)
        made = (2 * a).tanh()  # by a hypernetwork, say
        y = targets(range(5))
        problem = JointProblem(
            lambda z, x, a=a, u=u, b=b, made=made, shared=shared: torch.tanh(
                z @ (made if shared else (2 * a).tanh()).T + x @ u.T + b
            ),
            lambda z, x, y=y: (z - y).square().sum(1) + x.square().sum(1),
        )
        case = tanh()
        found = RUNS["tracking"].solve(problem, case.z0, case.x0, adjoint=adjoint)
        gradients.append(torch.autograd.grad(loss_of(found) + made.square().sum() * shared, (a, u, b)))
        extra = torch.autograd.grad((2 * a).tanh().square().sum(), a)[0]
    assert torch.allclose(gradients[0][0] - extra, gradients[1][0], rtol=1e-10)
    assert torch.allclose(gradients[0][1], gradients[1][1], rtol=1e-10)


@BOTH
@pytest.mark.parametrize("run", RUNS)
def test_an_unusable_sample_does_not_poison_theta(run: str, adjoint: Unrolled) -> None:
    case, others = linear(), [0, 1, 3, 4]
    z0 = case.z0.clone()  # type: ignore[union-attr]
    z0[2] = torch.nan
    found = RUNS[run].solve(case.problem, z0, case.x0, adjoint=adjoint)
    assert found.usable.tolist() == [True, True, False, True, True]
    got = torch.autograd.grad(found.x[found.usable].cos().sum() + found.objective[found.usable].sum(), case.theta)
    part = linear(rows=others)
    single = RUNS[run].solve(part.problem, part.z0, part.x0, adjoint=adjoint)
    want = torch.autograd.grad(single.x.cos().sum() + single.objective.sum(), part.theta)
    assert all(torch.allclose(one, other, rtol=1e-6, atol=1e-7) for one, other in zip(got, want, strict=True))


@BOTH
@pytest.mark.parametrize("run", RUNS)
def test_hooks_of_parameters_run_once(run: str, adjoint: Unrolled) -> None:
    """A hook that scales and counts: as many times as it runs on a parameter used once, however many evaluations."""
    gradients, calls = [], []

    def hook(gradient: Tensor) -> Tensor:
        calls.append(gradient)
        return 3 * gradient

    for hooked in (False, True):
        case = tanh()
        if hooked:
            handles = [part.register_hook(hook) for part in case.theta]
        found = RUNS[run].solve(case.problem, case.z0, case.x0, adjoint=adjoint)
        gradients.append(torch.autograd.grad(loss_of(found), case.theta))
    assert len(calls) == len(case.theta)
    assert all(torch.allclose(got, 3 * want, rtol=1e-10) for got, want in zip(gradients[1], gradients[0], strict=True))
    (2 * case.theta[0]).sum().backward()
    assert case.theta[0].grad is not None and (case.theta[0].grad == 6).all(), "the hooks are where they were"
    handles[0].remove()
    assert not case.theta[0]._backward_hooks


def test_a_finished_solve_cannot_be_attached() -> None:
    case = linear()
    found = RUNS["tracking"].solve(case.problem, case.z0, case.x0)
    with pytest.raises(ProblemError, match=r"call solve\(\.\.\., adjoint=Unrolled\(\)\)"):
        Unrolled().attach(case.problem, found)


def test_the_evaluation_is_that_of_the_problem() -> None:
    case = CASES["tanh_ball"]()
    z, x, mu = torch.randn(5, 6).double(), torch.randn(5, 4).double(), torch.randn(5, 6).double()
    want = case.problem.evaluate(z, x, mu)
    for checkpoint in (False, True):
        got = RecordedProblem.of(case.problem, "Unrolled", checkpoint).evaluate(z, x, mu)
        for name in ("f", "objective", "g_z", "g_x"):
            assert torch.equal(getattr(got, name), getattr(want, name))


@BOTH
def test_gradcheck_of_an_evaluation(adjoint: Unrolled) -> None:
    a, u, b = theta_of(seed=2, gain=0.8)
    y = targets(range(5))

    def outputs(z: Tensor, x: Tensor, mu: Tensor, a: Tensor, u: Tensor) -> tuple[Any, ...]:
        problem = JointProblem(
            lambda z, x: torch.tanh(z @ a.T + x @ u.T + b),
            lambda z, x: ((z - y) ** 4).sum(1) + (z[:, :4] * x).square().sum(1),
        )
        found = RecordedProblem.of(problem, "Unrolled", adjoint.checkpoint).evaluate(z, x, mu)
        return found.f, found.objective, found.g_z, found.g_x

    inputs = [torch.randn(5, width, dtype=torch.float64, requires_grad=True) for width in (6, 4, 6)]
    check: Callable[..., bool] = torch.autograd.gradcheck
    # theta as leaves: a copy made by gradcheck would hide them
    assert check(outputs, (*inputs, a.detach().requires_grad_(), u.detach().requires_grad_()), atol=1e-5)
