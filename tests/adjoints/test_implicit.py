"""The implicit gradient: of any outer loss, against closed forms, and against finite differences of whole solves."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parametrize

from catalogue import (
    CASES,
    INPUT,
    STATE,
    WEIGHT_OF_X,
    WITH_TRUTH,
    Case,
    Theta,
    flat,
    linear,
    tanh,
    targets,
    theta_of,
    zeros,
)
from deqopt import Equilibrium, JointProblem
from deqopt.adjoints import Adjoint, Implicit, Phantom, Unrolled
from deqopt.adjoints.linearised import Linearised
from deqopt.feasible import Box, Everywhere, FeasibleSet, Intersection, L2Ball
from deqopt.fixed_point import Anderson
from deqopt.solvers import Tracking, solve_exactly
from outer_losses import EXACT, PRECISE, close, loss_of, outer_loss, slopes, solved

# -- closed forms -----------------------------------------------------------------------------------------------------


def optimum(theta: Theta, y: Tensor, feasible: FeasibleSet, at: Tensor) -> Tensor:
    """The optimal x, differentiable in theta: one Newton step, which does not move, on the KKT conditions at ``at``.

    The active set is taken at ``at``; the matrix of the step needs no derivative, because the step is 0.
    """
    a, u, b = theta
    inverse = torch.linalg.inv(torch.eye(STATE, dtype=a.dtype) - a)
    g, c = inverse @ u, inverse @ b
    normal, right = g.T @ g + WEIGHT_OF_X * torch.eye(INPUT, dtype=a.dtype), (y - c) @ g
    solutions = []
    for x, r in zip(at.detach(), right, strict=True):
        gradient = normal @ x - r
        if isinstance(feasible, L2Ball) and x.norm() > feasible.radius - 1e-6:
            nu = (-gradient @ x / (x @ x)).detach()
            matrix = torch.zeros(INPUT + 1, INPUT + 1, dtype=a.dtype)
            matrix[:INPUT, :INPUT] = normal.detach() + nu * torch.eye(INPUT, dtype=a.dtype)
            matrix[:INPUT, INPUT] = matrix[INPUT, :INPUT] = x
            step = torch.linalg.solve(matrix, torch.cat([gradient + nu * x, x.new_zeros(1)]))[:INPUT]
        else:
            free = torch.ones(INPUT, dtype=torch.bool)
            if isinstance(feasible, Box):
                free = (x > feasible.low + 1e-6) & (x < feasible.high - 1e-6)
            step = x.new_zeros(INPUT).index_put(
                (free.nonzero().squeeze(1),), torch.linalg.solve(normal.detach()[free][:, free], gradient[free])
            )
        solutions.append(x - step)
    return torch.stack(solutions)


def closed_form(case: Case, found: Equilibrium) -> tuple[Tensor, Tensor, Tensor]:
    a, u, b = case.theta
    y = targets(range(5))
    x = optimum((a, u, b), y, case.problem.feasible, flat(found.x))
    inverse = torch.linalg.inv(torch.eye(STATE, dtype=a.dtype) - a)
    z = (x @ u.T + b) @ inverse.T
    return z, x, 2 * (z - y) @ inverse


@pytest.mark.parametrize("name", WITH_TRUTH)
def test_any_outer_loss_against_the_closed_form(name: str) -> None:
    case = CASES[name]()
    found = solved(case, PRECISE)
    z, x, mu = closed_form(case, found)
    for got, want in ((found.z, z), (found.x, x), (found.mu, mu)):
        assert torch.allclose(flat(got), want, atol=1e-9)
    gradients = torch.autograd.grad(loss_of(found).sum(), case.theta)
    assert close(gradients, torch.autograd.grad(outer_loss(z, x, mu).sum(), case.theta), 1e-8)


@pytest.mark.parametrize("part", ["z", "x", "mu"])
@pytest.mark.parametrize("name", ["linear", "linear_ball", "linear_box"])
def test_every_part_alone(name: str, part: str) -> None:
    case = CASES[name]()
    found = solved(case, PRECISE)
    truth = dict(zip(("z", "x", "mu"), closed_form(case, found), strict=True))
    got = torch.autograd.grad(flat(getattr(found, part)).cos().sum(), case.theta)
    assert close(got, torch.autograd.grad(truth[part].cos().sum(), case.theta), 1e-8)


def test_a_constraint_that_is_nowhere_active_changes_nothing() -> None:
    case = linear()
    found = solved(case)
    wide = Intersection((L2Ball(50.0), Box(-40.0, 40.0)))
    one, other = (
        torch.autograd.grad(loss_of(PRECISE.attach(replace(case.problem, feasible=x), found)).sum(), case.theta)
        for x in (Everywhere(), wide)
    )
    assert close(one, other, 1e-10)


# -- finite differences of the whole solve ----------------------------------------------------------------------------


def tanh_case(feasible: FeasibleSet, theta: Theta | None = None) -> Case:
    """Contractive, with curvature; without constraint the catalogue's fifth sample has no minimum nearby."""
    return tanh(range(4), feasible=feasible, theta=theta or theta_of(seed=2, gain=0.5))


def conv_case(feasible: FeasibleSet, theta: tuple[Tensor, ...] | None = None) -> Case:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    own = normal(2, 2, 3, 3) / 9, normal(32, 3) / 4, normal(1, 2, 3, 3)
    images = normal(3, 1, 4, 4)
    kernel, inject, paint = theta or tuple(part.requires_grad_() for part in own)

    def objective(z: Tensor, x: Tensor) -> Tensor:
        painted = torch.tanh(F.conv2d(z, paint, padding=1))
        return (painted - images).square().flatten(1).sum(1) + x.square().sum(1)

    problem = JointProblem(
        cell=lambda z, x: F.silu(F.conv2d(z, kernel, padding=1) + (x @ inject.T).reshape(-1, 2, 4, 4)),
        objective=objective,
        feasible=feasible,
    )
    return Case(problem, torch.zeros(3, 2, 4, 4, dtype=torch.float64), zeros(range(3), 3), (kernel, inject, paint))


MODES: dict[str, Adjoint] = {
    "implicit": PRECISE,
    "phantom": Phantom(steps=1500, damping=0.5),
    "unrolled": Unrolled(),
    "unrolled_checkpoint": Unrolled(checkpoint=True),
}
NONLINEAR: dict[str, Callable[..., Case]] = {"tanh": tanh_case, "conv": conv_case}
SETS: dict[str, FeasibleSet] = {"everywhere": Everywhere(), "ball": L2Ball(0.3), "box": Box(-0.1, 0.15)}


@cache
def numeric(name: str, where: str) -> tuple[Equilibrium, list[tuple[Tensor, Tensor]]]:
    """The solution, and the slopes of the outer loss of whole solves."""
    make, feasible = NONLINEAR[name], SETS[where]
    case = make(feasible)
    anchor = solved(case)
    if where != "everywhere":
        moved = anchor.x - 1e-3 * case.problem.evaluate(anchor.z, anchor.x, anchor.mu).g_x
        assert (feasible.distance(moved) > 1e-5).any(), "the constraint is active"

    def value(*theta: Tensor) -> Tensor:
        found = solved(make(feasible, theta), start=anchor)
        return loss_of(found, range(len(found.x))).sum()

    return anchor, slopes(value, case.theta, eps=1e-4)


@pytest.mark.parametrize(
    ("name", "where", "mode"),
    [
        *((name, where, "implicit") for name in NONLINEAR for where in SETS),
        *((*at, mode) for at in (("tanh", "box"), ("conv", "ball")) for mode in MODES if mode != "implicit"),
    ],
)
def test_every_mode_against_finite_differences_of_the_solve(name: str, where: str, mode: str) -> None:
    anchor, expected = numeric(name, where)
    case = NONLINEAR[name](SETS[where])
    if isinstance(MODES[mode], Unrolled):
        found = EXACT.solve(case.problem, case.z0, case.x0, adjoint=MODES[mode])
    else:
        found = MODES[mode].attach(case.problem, anchor)
    gradients = torch.autograd.grad(loss_of(found, range(len(found.x))).sum(), case.theta)
    tol = 2e-5 if isinstance(MODES[mode], Unrolled) else 2e-6  # derivatives of iterates converge after the iterates
    for gradient, (direction, value) in zip(gradients, expected, strict=True):
        assert torch.allclose((gradient * direction).sum(), value, rtol=tol, atol=tol)


# -- invariances ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear_ball", "linear_box", "tanh", "linear_tuple"])
def test_the_step_of_x_and_the_scales_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]()
    found = EXACT.solve(case.problem, case.z0, case.x0)
    gradients = []
    for step_size in (None, 0.01, 3.0):
        monkeypatch.setattr(Implicit, "step_of_x", lambda self, a=step_size: a)
        attached = PRECISE.attach(case.problem, found)
        gradients.append(torch.autograd.grad(loss_of(attached).sum(), case.theta))
    assert close(gradients[1], gradients[0], 1e-7) and close(gradients[2], gradients[0], 1e-7)


@pytest.mark.parametrize("name", ["linear_ball", "linear_box", "tanh_ball"])
def test_a_sample_has_the_gradient_that_it_has_alone(name: str) -> None:
    together = CASES[name]()
    found = EXACT.solve(together.problem, together.z0, together.x0, adjoint=PRECISE)
    weight = torch.tensor([0.0, 0, 1, 0, 0], dtype=torch.float64)
    got = torch.autograd.grad((weight * loss_of(found)).sum(), together.theta)
    alone = CASES[name](rows=[2])
    single = EXACT.solve(alone.problem, alone.z0, alone.x0, adjoint=PRECISE)
    want = torch.autograd.grad(loss_of(single, [2]).sum(), alone.theta)
    assert close(got, want, 1e-8)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_units_of_the_objective_do_not_matter(factor: float) -> None:
    """Neither the products that it takes nor the gradient of a loss of z and x depend on the unit of J."""
    case = CASES["tanh_ball"]()
    scaled = replace(case.problem, objective=lambda z, x: factor * case.problem.objective(z, x))
    found = EXACT.solve(case.problem, case.z0, case.x0)
    assert isinstance(found.mu, Tensor)
    there = replace(found, mu=factor * found.mu)
    reports, gradients = [], []
    for problem, point in ((case.problem, found), (scaled, there)):
        attached = Implicit(tol=1e-9).attach(problem, point)
        gradients.append(torch.autograd.grad((flat(attached.z).sin().sum() + attached.x.cos().sum()), case.theta))
        reports.append(attached.backward)
    assert close(gradients[0], gradients[1], 1e-6)
    assert reports[0] is not None and reports[1] is not None
    assert torch.equal(reports[0].nfe, reports[1].nfe)  # type: ignore[arg-type]


def test_a_step_that_fits_the_curvature_saves_products() -> None:
    """The measured step and scales are on: far from them, the same problem takes more."""
    torch.manual_seed(0)
    a, u, y = torch.randn(100, 100), torch.randn(100, 20), torch.randn(3, 100)
    a = 0.3 * a / torch.linalg.matrix_norm(a, 2)
    problem = JointProblem(
        lambda z, x: z @ a.T + x @ u.T, lambda z, x: 1e-3 * ((z - y).square().sum(1) + x.square().sum(1))
    )
    v = torch.cat([torch.randn(3, 100), torch.zeros(3, 120)], dim=1)
    products = []
    for step_size in (None, 1e-4, 100.0):
        system = Linearised.of_problem(problem, torch.randn(3, 100), torch.randn(3, 100), torch.randn(3, 20), step_size)
        _, report = Implicit(tol=1e-4).multiplier(system, v, torch.zeros(3, dtype=torch.bool))
        assert report.nfe is not None
        products.append(int(report.nfe.max()))
    assert products[0] < 0.7 * min(products[1:])


# -- where it runs ----------------------------------------------------------------------------------------------------


def test_objective_carries_the_envelope_gradient() -> None:
    case = linear()
    found = solved(case, Implicit())
    assert case.truth is not None
    assert close(torch.autograd.grad(found.objective.sum(), case.theta), case.truth.gradients, 1e-8)


def conv_gradient(cached: bool = False, autocast: bool = False) -> Tensor:
    case = CASES["conv"]()
    found = Tracking(max_nfe=40, step_size=0.3).solve(case.problem, case.z0, case.x0)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        parametrize.cached() if cached else torch.enable_grad(),
    ):
        attached = Implicit().attach(case.problem, found)
        gradients = torch.autograd.grad(loss_of(attached).sum(), case.theta)
    assert attached.backward is not None and attached.backward.residual is not None
    assert (attached.backward.residual <= 1e-3).all()
    return torch.cat([gradient.flatten() for gradient in gradients])


def test_cached_parametrizations_and_autocast_change_nothing() -> None:
    """The linear system is built and solved in float32, also where autocast is on forward and backward."""
    plain = conv_gradient()
    assert torch.allclose(conv_gradient(cached=True), plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))
    assert torch.allclose(conv_gradient(autocast=True), plain, rtol=1e-2, atol=1e-2 * float(plain.abs().max()))


def test_a_point_off_the_equilibrium_has_a_gradient_close_to_the_exact_one() -> None:
    """To first order in the residual: an unconverged solve is not refused, its status says what it is."""
    case = tanh_case(L2Ball(0.3))
    exact = solved(case)
    want = torch.autograd.grad(loss_of(PRECISE.attach(case.problem, exact), range(4)).sum(), case.theta)
    errors = []
    for tol in (1e-2, 1e-4, 1e-6):
        rough = replace(EXACT, tol=tol).solve(case.problem, case.z0, case.x0, adjoint=PRECISE)
        got = torch.autograd.grad(loss_of(rough, range(4)).sum(), case.theta)
        errors.append(max(float((a - b).norm() / b.norm()) for a, b in zip(got, want, strict=True)))
    assert errors[0] < 0.2 and errors[1] < 2e-3 and errors[2] < 2e-5


def test_exactly_solved_points_can_be_attached() -> None:
    case = tanh_case(Everywhere())
    exact = solve_exactly(case.problem, solved(case), Anderson(max_nfe=100, tol=1e-14))
    attached = Implicit().attach(case.problem, exact)
    assert torch.equal(flat(attached.z), flat(exact.z)) and attached.x.requires_grad
