"""After a restart every solver takes half its step of x: the same one would be lost in the same place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from catalogue import linear
from deqopt.loop_settings import Norm
from deqopt.solvers import (
    LBFGS,
    PGD,
    Adam,
    Bilevel,
    JointAnderson,
    JointBroyden,
    JointSolver,
    SecantTracking,
    StepRule,
    Tracking,
)
from deqopt.solvers.system import JointSystem

HALF: list[JointSolver] = [
    Tracking(inner=1),
    Tracking(inner=1, momentum=0.5),
    SecantTracking(),
    *(Bilevel(descent=one) for one in (PGD(), PGD(norm=Norm.L2), PGD(norm=Norm.LINF), Adam(), LBFGS())),
]
# These mix the shorter step with where they are: half of the half.
QUARTER: list[JointSolver] = [
    JointAnderson(),
    JointAnderson(step_rule=StepRule.PLAIN, step_size=0.01),
    JointBroyden(),
    JointBroyden(step_rule=StepRule.PLAIN, step_size=0.01),
]
CASES = [*((one, 0.5) for one in HALF), *((one, 0.25) for one in QUARTER)]


def first_move(solver: JointSolver, restarted: Tensor) -> Tensor:
    """How far x goes in the first step that moves it, (B,)."""
    case = linear()
    assert isinstance(case.z0, Tensor)
    system = JointSystem.of(case.problem, case.z0, case.x0, solver)
    point = system.pack(case.z0, torch.ones_like(case.z0), case.x0)
    memory = solver.begin(system, *system.split(point))
    memory.restart(restarted)
    with torch.no_grad():
        at = system.evaluate(point)
        after = solver.step(system, at, memory)
        if isinstance(solver, Bilevel):  # its first step only solves
            at = system.evaluate(system.join(*after))
            after = solver.step(system, at, memory)
    return (after[1] - at.x).norm(dim=1)


@pytest.mark.parametrize(("solver", "share"), CASES, ids=[repr(solver) for solver, _ in CASES])
def test_the_step_of_x_is_halved_in_the_rows_that_start_again(solver: JointSolver, share: float) -> None:
    again = torch.tensor([False, True, False, True, False])
    shares = first_move(solver, again) / first_move(solver, torch.zeros_like(again))
    torch.testing.assert_close(shares, torch.where(again, share, 1.0).double(), rtol=1e-6, atol=0)
