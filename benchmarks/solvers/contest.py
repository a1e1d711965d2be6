"""A contest: settings are chosen on validation images, then everybody solves the test images, taking turns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.competitors import Choice, Competitor, Entrant, Side
from benchmarks.models import Model
from benchmarks.stopwatch import Point, Stopwatch
from deqopt import JointProblem
from deqopt.fixed_point import Anderson
from deqopt.state import State


@dataclass(frozen=True)
class Scene:
    """A model with the images that its problem is solved for.

    Attributes:
        exact: the most evaluations that the equilibrium of a returned x is solved with, outside the clock.
    """

    name: str
    model: Model
    validation: tuple[JointProblem, State, Tensor]
    test: tuple[JointProblem, State, Tensor]
    seed: int = 0
    exact: int = 200

    @property
    def device(self) -> torch.device:
        return self.test[2].device


@dataclass(frozen=True)
class Mark:
    """What an entrant reached at a label.

    Attributes:
        settings: those chosen for this label.
        objective: the mean over the samples at the feasible point, lower is better; in the units of the model.
        outside: how far the worst x lay outside the feasible set before it was projected.
    """

    label: int
    settings: str
    evaluations: float
    seconds: float
    objective: float
    outside: float


@dataclass(frozen=True)
class Curve:
    """The marks of an entrant on one set of images, by label."""

    entrant: str
    side: Side
    marks: tuple[Mark, ...]

    def fewest_evaluations(self, target: float) -> float:
        """To an objective of ``target`` or lower; infinite where it is not reached."""
        return min((mark.evaluations for mark in self.marks if mark.objective <= target), default=math.inf)

    def least_seconds(self, target: float) -> float:
        """To an objective of ``target`` or lower; infinite where it is not reached."""
        return min((mark.seconds for mark in self.marks if mark.objective <= target), default=math.inf)

    def at(self, label: int) -> Mark:
        return next(mark for mark in self.marks if mark.label == label)

    @property
    def best(self) -> float:
        """The lowest objective of all marks."""
        return min(mark.objective for mark in self.marks)


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
    points: list[list[list[Point]]] = [[] for _ in entrants]
    for turn in range(repeats + 1):
        for index, entrant in enumerate(entrants):
            plan = selected[index][0]
            runs: list[Point] = []
            for settings in dict.fromkeys(plan.values()):
                labels = [label for label in entrant.labels if plan[label] == settings]
                runs += _run(scene, entrant.candidates[settings], scene.test, labels, counted=turn == 0)
            points[index].append(sorted(runs, key=lambda point: point.label))
        print(f"  {scene.name}: turn {turn + 1} of {repeats + 1} done", flush=True)
    standings = []
    for entrant, (plan, validation, chosen), turns in zip(entrants, selected, points, strict=True):
        counted, timed = turns[0], list(zip(*turns[1:], strict=True))
        together = [
            Point(point.label, point.x, point.evaluations, statistics.median(run.seconds for run in runs))
            for point, runs in zip(counted, timed, strict=True)
        ]
        test = Curve(entrant.name, entrant.side, tuple(_marks(scene, scene.test, together, plan)))
        standings.append(Standing(entrant, validation, test, chosen))
    return standings


def _select(scene: Scene, entrant: Entrant) -> tuple[dict[int, str], Curve, int]:
    """The settings for each label, the curve on validation images with them, and the chosen label."""
    trials: dict[str, list[Mark]] = {}
    for settings, competitor in entrant.candidates.items():
        points = _run(scene, competitor, scene.validation, entrant.labels, counted=True)
        plan = dict.fromkeys(entrant.labels, settings)
        trials[settings] = list(_marks(scene, scene.validation, points, plan))
    marks, chosen = choose(trials, entrant.choice)
    print(f"  {scene.name}: {entrant.name}: {_described(marks)}", flush=True)
    return {mark.label: mark.settings for mark in marks}, Curve(entrant.name, entrant.side, tuple(marks)), chosen


def choose(trials: dict[str, list[Mark]], choice: Choice) -> tuple[list[Mark], int]:
    """The marks of the chosen settings, one a label, and the label at which the entrant is at its best."""
    last = [marks[-1] for marks in trials.values()]
    if choice is Choice.EACH:
        return [min(marks, key=_objective) for marks in zip(*trials.values(), strict=True)], last[0].label
    if choice is Choice.LAST:
        return trials[min(last, key=_objective).settings], last[0].label
    every = [mark for marks in trials.values() for mark in marks]
    lowest = min(every, key=_objective).objective
    near = [mark for mark in every if mark.objective <= lowest + 0.005 * abs(lowest)]
    cheapest = min(near, key=lambda mark: (mark.label, mark.objective))
    return trials[cheapest.settings], cheapest.label


def _objective(mark: Mark) -> float:
    return mark.objective


def _described(marks: Sequence[Mark]) -> str:
    parts = [f"{settings}" for settings in dict.fromkeys(mark.settings for mark in marks)]
    if len(parts) == 1:
        return parts[0]
    return ", ".join(f"{part} at {'/'.join(str(m.label) for m in marks if m.settings == part)}" for part in parts)


def _run(
    scene: Scene,
    competitor: Competitor,
    images: tuple[JointProblem, State, Tensor],
    labels: Sequence[int],
    counted: bool,
) -> list[Point]:
    problem, z0, x0 = images
    watch = Stopwatch(scene.device, counted)
    torch.manual_seed(scene.seed)
    competitor.run(watch.observe(problem), z0, x0, watch, labels)
    return watch.points


def _marks(
    scene: Scene, images: tuple[JointProblem, State, Tensor], points: Sequence[Point], plan: dict[int, str]
) -> Iterator[Mark]:
    problem, z, _ = images
    for point in points:
        x = problem.feasible.project(point.x.nan_to_num())
        outside = float((point.x - x).flatten(1).norm(dim=1).nan_to_num(nan=math.inf).max())
        z, objective = at_feasible_point(problem, z, x, scene.exact)
        mean = float(scene.model.reported(objective).mean()) if bool(point.x.isfinite().all()) else math.inf
        yield Mark(point.label, plan[point.label], point.evaluations, point.seconds, mean, outside)


def at_feasible_point(problem: JointProblem, z: State, x: Tensor, max_nfe: int) -> tuple[State, Tensor]:
    """The exact equilibrium of ``x``, sought from ``z``, and J there, (B,)."""
    z = Anderson(max_nfe=max_nfe, tol=1e-5).solve(lambda z: problem.f(z, x), z).z
    with torch.no_grad():
        return z, problem.J(z, x)
