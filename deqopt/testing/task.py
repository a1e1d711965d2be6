"""The contract of a task."""

from __future__ import annotations

from typing import Any

import torch

from deqopt.adjoints import Adjoint
from deqopt.errors import ProblemError
from deqopt.solvers import JointSolver, Tracking
from deqopt.task import Task
from deqopt.testing import task_learning, task_outputs, task_problem
from deqopt.testing.bench import Bench
from deqopt.testing.report import Report, examine

STAGES = (
    task_problem.FIRST,
    task_problem.SECOND,
    (*task_problem.CLAUSES, *task_learning.CLAUSES, *task_outputs.CLAUSES),
)
# Long enough to leave the start, and no longer: the contract asks for no good solution.
SOLVER = Tracking(max_nfe=12)


def check_task(
    task: Task, batch: Any = None, *, solver: JointSolver | None = None, adjoint: Adjoint | None = None
) -> Report:
    """Examine a task on one batch: whether it can be trained, evaluated, saved and shown.

    Give it small settings: it is solved about 20 times. Its parameters, buffers and modes are left as they are.

    Args:
        batch: 3 samples or more, of which 6 are used. Without it, the first batches of the task's own loaders, which
            then are examined as well.
        solver: by default Tracking with 12 evaluations.
        adjoint: how gradients reach theta; by default that of the task.

    Raises:
        ContractError: it breaks clauses of the contract; lists all of them, with what was expected and what came.
        ProblemError: no task.
    """
    if not isinstance(task, Task):
        raise ProblemError(f"check_task takes an instance of a Task, such as MyTask(), got {task!r}")
    bench = Bench(task, batch, solver or SOLVER, adjoint or task.default_adjoint())
    devices = [bench.device] if bench.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        return examine(type(task).__name__, bench, *STAGES)
