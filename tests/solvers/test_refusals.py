"""Starts, problems and settings that cannot be meant: each is refused with its name and what would be right."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from catalogue import CASES, CLOSED_FORMS, Case
from deqopt import JointProblem
from deqopt.errors import ProblemError
from deqopt.solvers import JointAnderson

SOLVER = JointAnderson(max_nfe=40, tol=1e-6)
Z, X = torch.zeros(2, 3), torch.zeros(2, 4)


def good_cell(z: Any, x: Any) -> Any:
    return 0.5 * z


def good_objective(z: Any, x: Any) -> Any:
    return (z - 1).square().sum(1) + x.square().sum(1)


@pytest.mark.parametrize(
    ("z0", "x0", "message"),
    [
        pytest.param(torch.zeros(3, 3), X, "z0 has 3 samples, x0 has 2", id="batch sizes"),
        pytest.param((Z, torch.zeros(4, 3)), X, "same batch size: .*4", id="batch size of one part"),
        pytest.param(Z.long(), X, "z0 must be a floating-point tensor", id="integer z0"),
        pytest.param(Z, X.long(), "x0 a floating-point tensor", id="integer x0"),
        pytest.param((), X, "z0 must be a floating-point tensor", id="empty tuple"),
        pytest.param(None, X, "z0 must be a floating-point tensor", id="no z0"),
        pytest.param(Z, None, "x0 a floating-point tensor", id="no x0"),
        pytest.param(Z.numpy(), X, "z0 must be a floating-point tensor", id="numpy z0"),
        pytest.param(Z, X.numpy(), "x0 a floating-point tensor", id="numpy x0"),
        pytest.param((Z, 1.0), X, "z0 must be a floating-point tensor", id="a number in the tuple"),
        pytest.param(torch.tensor(0.0), torch.tensor(0.0), "batch dimension", id="no batch dimension"),
    ],
)
def test_starts_that_do_not_fit(z0: Any, x0: Any, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        SOLVER.solve(JointProblem(good_cell, good_objective), z0, x0)


@pytest.mark.parametrize(
    ("cell", "objective", "z0", "message"),
    [
        pytest.param(lambda z, x: z[:, :2], good_objective, Z, r"cell must keep the shape of z.*\(2, 2\)", id="shape"),
        pytest.param(lambda z, x: z[:1], good_objective, Z, r"cell must keep the shape of z.*\(1, 3\)", id="batch"),
        pytest.param(
            lambda z, x: (z, z), good_objective, Z, "cell returned a tuple .* a tensor", id="tuple for tensor"
        ),
        pytest.param(
            lambda z, x: z[0], good_objective, (Z, Z), "cell returned a tensor .* a tuple", id="tensor for tuple"
        ),
        pytest.param(lambda z, x: z[:1], lambda z, x: x.sum(1), (Z, Z), "cell must keep the shape", id="a part less"),
        pytest.param(lambda z, x: None, good_objective, Z, "cell returned a NoneType", id="nothing"),
        pytest.param(
            lambda z, x: None, lambda z, x: x.sum(1), (Z, Z), "cell returned a NoneType", id="nothing for tuple"
        ),
        pytest.param(
            lambda z, x: (2 * z).long(), good_objective, Z, "cell must return floating-point .* int64", id="type"
        ),
        pytest.param(
            good_cell, lambda z, x: z.sum(), Z, r"one value per sample, shape \(2,\).*tensor \(\)", id="scalar J"
        ),
        pytest.param(good_cell, lambda z, x: z, Z, r"one value per sample, .*\(2, 3\)", id="J not summed"),
        pytest.param(
            good_cell, lambda z, x: z.sum(1, keepdim=True), Z, r"one value.*\(2, 1\)", id="J keeps a dimension"
        ),
        pytest.param(good_cell, lambda z, x: 1.0, Z, "one value per sample, .* float", id="J is a number"),
        pytest.param(
            lambda z, x: z.detach(), lambda z, x: z.detach().sum(1), Z, "depends on z or x", id="cut off from z and x"
        ),
    ],
)
def test_problems_that_do_not_keep_the_contract(
    cell: Callable[..., Any], objective: Callable[..., Any], z0: Any, message: str
) -> None:
    with pytest.raises(ProblemError, match=message):
        SOLVER.solve(JointProblem(cell, objective), z0, X)


@pytest.mark.parametrize("mu0", [torch.zeros(2, 2), (Z, Z), torch.zeros(1, 3), 0.0])
def test_multipliers_that_do_not_fit(mu0: Any) -> None:
    with pytest.raises(ProblemError, match="mu0"):
        SOLVER.solve(JointProblem(good_cell, good_objective), Z, X, mu0=mu0)


def test_parts_of_the_case_agree() -> None:
    """The catalogue itself: rows of a case are the samples of the whole."""
    for name in CLOSED_FORMS:
        whole, part = CASES[name](), CASES[name](rows=[3, 1])
        assert isinstance(whole, Case) and whole.truth is not None and part.truth is not None
        assert torch.allclose(whole.truth.x[[3, 1]], part.truth.x, atol=1e-12)
