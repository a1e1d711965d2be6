"""A loss of what the adjoint holds fixed: the backward pass says so, once, and nothing else changes."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from catalogue import CASES, flat, linear
from deqopt import Equilibrium
from deqopt.adjoints import Adjoint, Envelope, Implicit, InputHeld, JacobianFree, Phantom, Unrolled
from deqopt.solvers import Tracking

SOLVER = Tracking(max_nfe=20, tol=0.0, step_size=0.3)
HELD = {
    Envelope(): {"z", "x", "mu"},
    InputHeld(): {"x", "mu"},
    Implicit(): set(),
    JacobianFree(): set(),
    Phantom(): set(),
    Unrolled(): set(),
}


def solved(adjoint: Adjoint, name: str = "linear") -> tuple[Equilibrium, tuple[Tensor, ...]]:
    case = CASES[name]()
    return SOLVER.solve(case.problem, case.z0, case.x0, adjoint=adjoint), case.theta


@pytest.mark.parametrize("name", ["linear", "linear_tuple"])
@pytest.mark.parametrize("part", ["z", "x", "mu"])
@pytest.mark.parametrize("adjoint", HELD, ids=repr)
def test_a_loss_of_a_held_value_warns_once_and_of_no_other(adjoint: Adjoint, part: str, name: str) -> None:
    found, theta = solved(adjoint, name)
    assert found.held == HELD[adjoint]
    loss = flat(getattr(found, part)).square().sum() + found.objective.sum()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.autograd.grad(loss, theta)
    said = [str(one.message) for one in caught if "the loss depends on" in str(one.message)]
    if part not in HELD[adjoint]:
        assert not said
    else:
        assert said == [
            f"the loss depends on eq.{part}, to which {type(adjoint).__name__} carries no gradient, so that the cell "
            "learns nothing from it: use Implicit() or Unrolled() (--adjoint), or .detach() if this is intended"
        ]


def test_it_names_all_that_the_loss_depends_on() -> None:
    found, theta = solved(Envelope())
    with pytest.warns(UserWarning, match=r"depends on eq\.z and eq\.x, to which"):
        torch.autograd.grad(flat(found.z).sum() + found.x.sum() + found.objective.sum(), theta)


def test_a_loss_of_nothing_else_warns_too() -> None:
    found, theta = solved(Envelope())
    with pytest.warns(UserWarning, match=r"depends on eq\.x, to which"):
        found.x.square().sum().backward()
    assert all(part.grad is None for part in theta)


@pytest.mark.parametrize("adjoint", [Envelope(), InputHeld()], ids=repr)
def test_what_is_meant_is_silent(adjoint: Adjoint) -> None:
    """Detached values, no gradient at all, and a loss on which a value has no influence."""
    found, theta = solved(adjoint)
    free = found.detach_held()
    assert not free.held and not free.x.requires_grad and torch.equal(free.x, found.x)
    assert free.objective is found.objective and (free.z is found.z) == ("z" not in found.held)
    loss = found.objective.sum() + free.x.square().sum() + found.x.detach().sum() + 0 * found.x.sum()
    torch.autograd.grad(loss, theta)
    case = linear()
    with torch.no_grad():
        plain = SOLVER.solve(case.problem, case.z0, case.x0, adjoint=adjoint)
    assert not plain.held and not plain.x.requires_grad


def test_the_gradient_is_that_of_a_detached_value() -> None:
    """Warned of, and otherwise as before: parameters of the loss itself learn from held values."""
    found, theta = solved(Envelope())
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.warns(UserWarning, match="the loss depends on"):
        got = torch.autograd.grad(
            weight * flat(found.z).sum() + found.objective.sum(), (*theta, weight), retain_graph=True
        )
    want = torch.autograd.grad(found.objective.sum(), theta)
    assert all(torch.equal(one, other) for one, other in zip(got[:-1], want, strict=True))
    assert torch.equal(got[-1], flat(found.z).sum())


def test_values_may_be_worked_on_in_place() -> None:
    case = linear()
    found = SOLVER.solve(case.problem, case.z0, case.x0, adjoint=Envelope())
    found.x.clamp_(-0.1, 0.1)
    assert found.x.abs().max() <= 0.1
