"""A contest: who takes part; settings are chosen on validation images, then all solve the test images, in turns."""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import torch
from torch import Tensor

from benchmarks.solvers.stopwatch import ReturnedInput, Stopwatch
from deqopt import JointProblem
from deqopt.fixed_point import Anderson
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


Cost = Literal["evaluations", "seconds"]
"""What a point of a curve took."""


@dataclass(frozen=True)
class Scene:
    """A model with the images that its problem is solved for.

    Attributes:
        unit: what the objective is divided by where it is reported.
        exact: the most evaluations that the equilibrium of a returned x is solved with, outside the clock.
    """

    name: str
    unit: float
    validation: tuple[JointProblem, State, Tensor]
    test: tuple[JointProblem, State, Tensor]
    seed: int = 0
    exact: int = 200

    @property
    def device(self) -> torch.device:
        return self.test[2].device


@dataclass(frozen=True)
class CurvePoint:
    """What an entrant reached at a label.

    Attributes:
        settings: those chosen for this label.
        objectives: of every sample at the feasible point, lower is better; in the unit of the scene. All are infinite
            where an x is not finite.
        outside: how far the worst x lay outside the feasible set before it was projected.
    """

    label: int
    settings: str
    evaluations: float
    seconds: float
    objectives: tuple[float, ...]
    outside: float

    @property
    def objective(self) -> float:
        """The mean over the samples."""
        return statistics.fmean(self.objectives)


@dataclass(frozen=True)
class Curve:
    """The points of an entrant on one set of images, by label."""

    entrant: str
    side: Side
    points: tuple[CurvePoint, ...]

    def least(self, cost: Cost, target: float) -> float:
        """The least cost of an objective of ``target`` or lower; infinite where it is not reached."""
        return min((getattr(point, cost) for point in self.points if point.objective <= target), default=math.inf)

    def at(self, label: int) -> CurvePoint:
        return next(point for point in self.points if point.label == label)

    @property
    def best(self) -> float:
        """The lowest objective of all points."""
        return min(point.objective for point in self.points)


@dataclass(frozen=True)
class Standing:
    """An entrant's curves: on validation images with the chosen settings, and on test images.

    Attributes:
        chosen: the label at which it is judged: its cheapest on validation images for CHEAPEST, otherwise the last.
    """

    entrant: Entrant
    validation: Curve
    test: Curve
    chosen: int


def hold(scene: Scene, entrants: Sequence[Entrant], repeats: int) -> list[Standing]:
    """Choose settings, then run all entrants ``repeats`` times in turns; seconds are medians."""
    selected = [_select(scene, entrant) for entrant in entrants]
    points: list[list[list[ReturnedInput]]] = [[] for _ in entrants]
    for turn in range(repeats + 1):
        for index, entrant in enumerate(entrants):
            plan = selected[index][0]
            runs: list[ReturnedInput] = []
            for settings in dict.fromkeys(plan.values()):
                labels = [label for label in entrant.labels if plan[label] == settings]
                runs += _run(scene, entrant.candidates[settings], scene.test, labels, counted=turn == 0)
            points[index].append(sorted(runs, key=lambda point: point.label))
        print(f"  {scene.name}: turn {turn + 1} of {repeats + 1} done", flush=True)
    standings = []
    for entrant, (plan, validation, chosen), turns in zip(entrants, selected, points, strict=True):
        counted, timed = turns[0], list(zip(*turns[1:], strict=True))
        together = [
            ReturnedInput(point.label, point.x, point.evaluations, statistics.median(run.seconds for run in runs))
            for point, runs in zip(counted, timed, strict=True)
        ]
        test = Curve(entrant.name, entrant.side, _measured(scene, scene.test, together, plan))
        standings.append(Standing(entrant, validation, test, chosen))
    return standings


def _select(scene: Scene, entrant: Entrant) -> tuple[dict[int, str], Curve, int]:
    """The settings for each label, the curve on validation images with them, and the chosen label."""
    trials: dict[str, Sequence[CurvePoint]] = {}
    for settings, competitor in entrant.candidates.items():
        returned = _run(scene, competitor, scene.validation, entrant.labels, counted=True)
        plan = dict.fromkeys(entrant.labels, settings)
        trials[settings] = _measured(scene, scene.validation, returned, plan)
    points, chosen = choose(trials, entrant.choice)
    print(f"  {scene.name}: {entrant.name}: {_described(points)}", flush=True)
    return {point.label: point.settings for point in points}, Curve(entrant.name, entrant.side, tuple(points)), chosen


def choose(trials: Mapping[str, Sequence[CurvePoint]], choice: SettingsChoice) -> tuple[Sequence[CurvePoint], int]:
    """The points of the chosen settings, one a label, and the label at which the entrant is at its best."""
    last = [points[-1] for points in trials.values()]
    if choice is SettingsChoice.EACH:
        return [min(points, key=_objective) for points in zip(*trials.values(), strict=True)], last[0].label
    if choice is SettingsChoice.LAST:
        return trials[min(last, key=_objective).settings], last[0].label
    every = [point for points in trials.values() for point in points]
    lowest = min(every, key=_objective).objective
    near = [point for point in every if point.objective <= lowest + 0.005 * abs(lowest)]
    cheapest = min(near, key=lambda point: (point.label, point.objective))
    return trials[cheapest.settings], cheapest.label


def _objective(point: CurvePoint) -> float:
    return point.objective


def _described(points: Sequence[CurvePoint]) -> str:
    parts = [f"{settings}" for settings in dict.fromkeys(point.settings for point in points)]
    if len(parts) == 1:
        return parts[0]
    return ", ".join(f"{part} at {'/'.join(str(m.label) for m in points if m.settings == part)}" for part in parts)


def _run(
    scene: Scene,
    competitor: Competitor,
    images: tuple[JointProblem, State, Tensor],
    labels: Sequence[int],
    counted: bool,
) -> list[ReturnedInput]:
    problem, z0, x0 = images
    watch = Stopwatch(scene.device, counted)
    torch.manual_seed(scene.seed)
    competitor.run(watch.observe(problem), z0, x0, watch, labels)
    return watch.points


def _measured(
    scene: Scene, images: tuple[JointProblem, State, Tensor], returned: Sequence[ReturnedInput], plan: dict[int, str]
) -> tuple[CurvePoint, ...]:
    problem, z, _ = images
    points = []
    for one in returned:
        x = problem.feasible.project(one.x.nan_to_num())
        outside = float((one.x - x).flatten(1).norm(dim=1).nan_to_num(nan=math.inf).max())
        z, objective = at_feasible_point(problem, z, x, scene.exact)
        if not bool(one.x.isfinite().all()):
            objective = torch.full_like(objective, math.inf)
        found = tuple((objective / scene.unit).tolist())
        points.append(CurvePoint(one.label, plan[one.label], one.evaluations, one.seconds, found, outside))
    return tuple(points)


def at_feasible_point(problem: JointProblem, z: State, x: Tensor, max_nfe: int) -> tuple[State, Tensor]:
    """The exact equilibrium of ``x``, sought from ``z``, and J there, (B,)."""
    z = Anderson(max_nfe=max_nfe, tol=1e-5).solve(lambda z: problem.f(z, x), z).z
    with torch.no_grad():
        return z, problem.J(z, x)
