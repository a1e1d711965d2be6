"""The contract of a solver."""

from __future__ import annotations

import torch

from deqopt.errors import ProblemError
from deqopt.solvers.base import JointSolver
from deqopt.testing import solver_effects, solver_results, solver_samples, solver_settings, solver_truth
from deqopt.testing.report import Report, examine
from deqopt.testing.trial import Trial

CLAUSES = (
    *solver_settings.CLAUSES,
    *solver_results.CLAUSES,
    *solver_truth.CLAUSES,
    *solver_samples.CLAUSES,
    *solver_effects.CLAUSES,
)


def check_solver(solver: JointSolver, *, share: float = 0.9, device: torch.device | str = "cpu") -> Report:
    """Examine a solver on small problems whose answers are known; takes seconds.

    They are linear, box and ball constrained, of tuple states, with data, with one x for several z, and a tanh. Inputs
    and targets are about 1 in size, cells contract by 0.6: give the solver settings that suit those.

    Args:
        solver: with the budget that it needs.
        share: in (0, 1]: how much of what the optimum gains over the start it must reach within that budget, on the
            average of a batch.
        device: where.

    Raises:
        ContractError: it breaks clauses of the contract; lists all of them, with what was expected and what came.
        ProblemError: no solver, or a share that cannot be meant.
    """
    if not isinstance(solver, JointSolver):
        raise ProblemError(f"check_solver takes an instance of a JointSolver, such as MySolver(), got {solver!r}")
    if not 0 < share <= 1:
        raise ProblemError(f"share must be in (0, 1], got {share}")
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        return examine(type(solver).__name__, Trial(solver, share, device), CLAUSES)
