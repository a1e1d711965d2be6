"""Joint Anderson mixing and Broyden's method: on, told apart, and where plain iteration fails."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from catalogue import ALL, INPUT, SOLVERS, STATE, linear, tanh, theta_of, zeros
from deqopt import JointProblem
from deqopt.fixed_point import MixingType
from deqopt.solvers import JointAnderson, JointBroyden, StepRule
from deqopt.solvers.mixing import JointMixing

PLAIN: dict[str, Any] = {"step_rule": StepRule.PLAIN, "step_size": 0.1}


@pytest.mark.parametrize("kind", [*(JointAnderson(kind=kind) for kind in MixingType), JointBroyden()])
def test_memory_is_on(kind: JointAnderson | JointBroyden) -> None:
    case = linear()
    spent = {
        memory: replace(kind, max_nfe=2000, tol=1e-8, history_size=memory, **PLAIN).solve(
            case.problem, case.z0, case.x0
        )
        for memory in (1, 3, 10)
    }
    assert all(found.converged.all() for found in spent.values())
    assert (spent[10].nfe < spent[3].nfe).all() and (spent[3].nfe < spent[1].nfe).all()
    assert (2.5 * spent[10].nfe < spent[1].nfe).all()


def test_the_kinds_of_mixing_are_told_apart() -> None:
    case = tanh()
    kinds = [*(JointAnderson(max_nfe=8, kind=kind) for kind in MixingType), JointBroyden(max_nfe=8)]
    first, second, third = (kind.solve(case.problem, case.z0, case.x0).x for kind in kinds)
    assert min((first - second).norm(), (second - third).norm(), (first - third).norm()) > 1e-4


ROTATION = torch.block_diag(*[torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)] * (STATE // 2))
SPREAD = torch.linspace(-1, 1, STATE, dtype=torch.float64).diag()
HARD = {"0.9": 0.9 * SPREAD, "0.99": 0.99 * SPREAD, "0.999": 0.999 * SPREAD, "rotation": ROTATION, "1.2": 1.2 * SPREAD}


@pytest.mark.parametrize(
    "solver", ["anderson", "anderson_type_II", "broyden", "bilevel_lbfgs", "bilevel_lbfgs_broyden"]
)
@pytest.mark.parametrize("name", HARD)
def test_cells_that_plain_iteration_hardly_or_never_solves(name: str, solver: str) -> None:
    """``z(x) = U x + c`` for every A: the problem in x is always the same, only the way to z and mu is harder."""
    a, (_, u, c), y = HARD[name], theta_of(), torch.ones(len(ALL), STATE, dtype=torch.float64)
    eye = torch.eye(STATE, dtype=torch.float64)
    problem = JointProblem(
        lambda z, x: z @ a + (x @ u.detach().T + c.detach()) @ (eye - a),
        lambda z, x: (z - y).square().sum(1) + x.square().sum(1),
    )
    exact = (y[0] - c) @ u @ torch.linalg.inv(u.T @ u + torch.eye(INPUT, dtype=torch.float64))
    chosen = SOLVERS[solver]
    if isinstance(chosen, JointMixing):
        chosen = replace(chosen, history_size=60)
    found = chosen.solve(problem, zeros(ALL, STATE), zeros(ALL, INPUT))
    assert found.converged.all()
    assert (found.x - exact).abs().max() < 1e-7
