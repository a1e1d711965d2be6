"""A NaN in what the cell sees of one sample: every adjoint gives the gradient of the others, or refuses."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from adjoint_catalogue import ADJOINTS
from catalogue import ALL, INPUT, STATE, quadratic, targets, theta_of, zeros
from deqopt import Equilibrium, JointProblem
from deqopt.adjoints import Adjoint, implicit_fixed_point
from deqopt.errors import NonFiniteError
from deqopt.feasible import Box, Everywhere, FeasibleSet, L2Ball
from deqopt.fixed_point import Anderson
from deqopt.regularizers import JacobianPenalty, Regularizer, SpectralPenalty
from deqopt.solvers import JointAnderson, StepRule
from deqopt.usable import stand_ins

THETA = theta_of(seed=2, gain=0.5)
PLAIN = JointAnderson(max_nfe=60, tol=1e-8, step_rule=StepRule.PLAIN, step_size=0.1)
EVERY_ADJOINT = pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)


def drive(rows: Any) -> Tensor:
    """What the cell sees of every sample."""
    return 0.3 * torch.randn(5, STATE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)[list(rows)]


def problem(given: Tensor, y: Tensor, feasible: FeasibleSet, closed_over: bool = False) -> JointProblem:
    a, u, b = THETA

    def cell(z: Tensor, x: Tensor, data: tuple[Tensor, Tensor] = (given, y)) -> Tensor:
        return torch.tanh(z @ a.T + x @ u.T + b * data[0])

    def objective(z: Tensor, x: Tensor, data: tuple[Tensor, Tensor] = (given, y)) -> Tensor:
        return quadratic(z, x, data[1])

    return JointProblem(cell, objective, feasible, None if closed_over else (given, y))


def loss_of(found: Equilibrium) -> Tensor:
    assert isinstance(found.z, Tensor)
    parts = (found.z.sin().sum(1), found.x.cos().sum(1), found.objective)
    return torch.stack(parts)[:, found.usable].sum()


def gradients(found: Equilibrium) -> tuple[Tensor, ...]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the loss depends on")
        return torch.autograd.grad(loss_of(found), THETA)


@EVERY_ADJOINT
@pytest.mark.parametrize("victims", [[0], [2], [1, 4], [0, 1, 2, 3]])
def test_the_others_have_the_gradient_that_they_have_alone(adjoint: Adjoint, victims: list[int]) -> None:
    given = drive(ALL)
    given[victims, 1] = torch.nan
    z0, x0 = zeros(ALL, STATE), zeros(ALL, INPUT)
    found = PLAIN.solve(problem(given, targets(ALL), Everywhere()), z0, x0, adjoint=adjoint)
    keep = [row for row in ALL if row not in victims]
    assert found.usable.nonzero()[:, 0].tolist() == keep
    alone = PLAIN.solve(problem(drive(keep), targets(keep), Everywhere()), z0[keep], x0[keep], adjoint=adjoint)
    for got, want in zip(gradients(found), gradients(alone), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


@EVERY_ADJOINT
@pytest.mark.parametrize("make", [lambda c: L2Ball(0.5, c), lambda c: Box(c - 0.2, c + 0.2)], ids=["ball", "box"])
def test_so_they_have_where_the_feasible_set_is_spoiled_too(adjoint: Adjoint, make: Any) -> None:
    given, center = drive(ALL), torch.linspace(-0.1, 0.1, 5 * INPUT, dtype=torch.float64).reshape(5, INPUT)
    given[2], keep = torch.nan, [0, 1, 3, 4]
    spoiled = center.clone()
    spoiled[2, 0] = torch.nan
    z0, x0 = zeros(ALL, STATE), zeros(ALL, INPUT)
    try:
        feasible = make(spoiled)
    except ValueError:
        pytest.skip("the set refuses NaN itself")
    found = PLAIN.solve(problem(given, targets(ALL), feasible), z0, x0, adjoint=adjoint)
    alone = PLAIN.solve(problem(drive(keep), targets(keep), make(center[keep])), z0[keep], x0[keep], adjoint=adjoint)
    for got, want in zip(gradients(found), gradients(alone), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


@EVERY_ADJOINT
def test_what_is_closed_over_is_refused(adjoint: Adjoint) -> None:
    given = drive(ALL)
    given[[1, 3]] = torch.nan
    spoiled = problem(given, targets(ALL), Everywhere(), closed_over=True)
    with pytest.raises(
        NonFiniteError, match=r"NaN or infinite for the samples 1, 3, .*JointProblem\(data=\.\.\.\), or"
    ):
        PLAIN.solve(spoiled, zeros(ALL, STATE), zeros(ALL, INPUT), adjoint=adjoint)
    assert PLAIN.solve(spoiled, zeros(ALL, STATE), zeros(ALL, INPUT)).usable.tolist() == [
        True,
        False,
        True,
        False,
        True,
    ]


@EVERY_ADJOINT
@pytest.mark.parametrize("closed_over", [True, False])
def test_where_no_sample_is_finite_the_loss_says_so(adjoint: Adjoint, closed_over: bool) -> None:
    """Nothing is left to be protected: as where the weights have diverged, which a training loop sees in its loss."""
    spoiled = problem(torch.nan * drive(ALL), targets(ALL), Everywhere(), closed_over)
    found = PLAIN.solve(spoiled, zeros(ALL, STATE), zeros(ALL, INPUT), adjoint=adjoint)
    assert not found.usable.any() and not found.objective.isfinite().any() and found.objective.requires_grad


REGULARIZERS: list[Regularizer] = [JacobianPenalty(visits=2), SpectralPenalty()]


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
def test_regularizers_are_those_of_the_others(regularizer: Regularizer) -> None:
    given, keep = drive(ALL), [0, 1, 3, 4]
    given[2] = torch.nan
    spoiled = problem(given, targets(ALL), Everywhere())
    found = PLAIN.solve(spoiled, zeros(ALL, STATE), zeros(ALL, INPUT), visits=2)
    harmless = problem(drive(ALL), targets(ALL), Everywhere())
    results = []
    for one, at in ((spoiled, found), (harmless, _filled(found, 2))):
        torch.manual_seed(0)
        value = regularizer.penalty(one, at)
        results.append((value, *torch.autograd.grad(value, THETA[0])))
    assert len(keep) == 4 and results[0][1].abs().max() > 0
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
    with pytest.raises(NonFiniteError, match="for the samples 2, which would"):
        regularizer.penalty(problem(given, targets(ALL), Everywhere(), closed_over=True), found)


def _filled(found: Equilibrium, row: int) -> Equilibrium:
    """The same with zeros in a lost row, and still lost."""

    def fill(part: Any) -> Any:
        if isinstance(part, tuple):
            return tuple(map(fill, part))
        part = part.clone()
        part[row] = 0
        return part

    return replace(found, z=fill(found.z), x=fill(found.x), mu=fill(found.mu), visited=fill(found.visited))


def test_a_fixed_point_names_the_samples_that_spoil_it() -> None:
    a, _, b = THETA
    given = drive(ALL)
    given[3] = torch.nan

    def f(z: Any) -> Any:
        return torch.tanh(z @ a.T + b * given)

    found = Anderson(max_nfe=50, tol=1e-8).solve(f, zeros(ALL, STATE))
    lost = torch.arange(5) == 3
    with pytest.raises(NonFiniteError, match="f closes over values that are NaN or infinite for the samples 3; they"):
        implicit_fixed_point(f, found.z, lost=lost)


@pytest.mark.parametrize(
    ("lost", "rows"),
    [([0, 0, 0], [0, 1, 2]), ([1, 0, 0], [1, 1, 2]), ([0, 1, 1], [0, 0, 0]), ([1, 1, 0], [2, 2, 2]), ([1, 1], [0, 0])],
)
def test_stand_ins_are_neighbours(lost: list[int], rows: list[int]) -> None:
    assert stand_ins(torch.tensor(lost, dtype=torch.bool)).tolist() == rows
