"""What a competitor is, and those of deqopt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from benchmarks.solvers.stopwatch import Stopwatch
from deqopt import JointProblem
from deqopt.solvers import JointSolver
from deqopt.state import State


class Competitor(ABC):
    """One way, with all its settings, to solve a joint problem."""

    @abstractmethod
    def run(self, problem: JointProblem, z0: State, x0: Tensor, watch: Stopwatch, labels: Sequence[int]) -> None:
        """Solve from ``(z0, x0)`` and mark the x that is returned at each of ``labels``, ascending."""


@dataclass(frozen=True)
class SolverAtBudgets(Competitor):
    """Any :class:`JointSolver`: a label is a budget, and every budget is a solve of its own.

    Args:
        make: the solver with a budget.
    """

    make: Callable[[int], JointSolver]

    def run(self, problem: JointProblem, z0: State, x0: Tensor, watch: Stopwatch, labels: Sequence[int]) -> None:
        for label in labels:
            solver = self.make(label)
            watch.start()
            watch.mark(label, solver.solve(problem, z0, x0).x)


class Side(Enum):
    """Whose a competitor is."""

    OURS = "deqopt"
    BASELINE = "baseline"
    PEER = "peer"


class SettingsChoice(Enum):
    """How the settings of an entrant are chosen on the validation images.

    EACH takes for every label those of the lowest objective, for solvers that are told their budget. LAST takes for all
    labels those of the lowest objective at the last one, and CHEAPEST those that get within half a percent of the
    lowest objective of all with the fewest steps.
    """

    EACH = "each"
    LAST = "last"
    CHEAPEST = "cheapest"


@dataclass(frozen=True)
class Entrant:
    """A competitor with the settings among which it may choose; all entrants have equally many.

    Args:
        candidates: by what distinguishes them, as it is printed.
        labels: budgets or step counts, ascending.
    """

    name: str
    side: Side
    candidates: dict[str, Competitor]
    labels: tuple[int, ...]
    choice: SettingsChoice


@dataclass(frozen=True)
class Missing:
    """An entrant that cannot take part, and why."""

    name: str
    reason: str
