"""The whole run: train or read the models, hold the contests, take the measures."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from benchmarks.solvers import entrants, measures
from benchmarks.solvers.contest import Entrant, Missing, Scene, Standing, hold
from benchmarks.solvers.entrants import Effort
from benchmarks.solvers.measures import MeasuredRatio
from benchmarks.solvers.models import CLASSIFIER, DECODER_A, DECODER_B, RADIUS, ContestModel, Digits, rows_of, to_device


class Part(Enum):
    """What ``--only`` chooses from."""

    COST = "cost"
    COMPACTION = "compaction"
    MEMORY = "memory"
    CLASSIFIER = "classifier"
    DECODER_A = "decoder-a"
    DECODER_B = "decoder-b"


@dataclass(frozen=True)
class Extent:
    """How large the run is.

    Args:
        validation, test: images of a contest.
        repeats: timed turns.
        steps: of training, for each model by its name; those of its recipe where absent.
        iterations: evaluations over which the cost of one is taken, and of the half converged batch.
        compacted: images of the batch of which half is converged.
        long: evaluations of the longer solve whose memory is measured.
        exact: evaluations by which a returned x is brought to the feasible point.
        parts: what is run where nothing is chosen.
    """

    effort: Effort = field(default_factory=Effort)
    validation: int = 32
    test: int = 96
    repeats: int = 2
    steps: dict[str, int] = field(default_factory=dict)
    iterations: int = 60
    compacted: int = 48
    long: int = 400
    exact: int = 200
    parts: frozenset[Part] = frozenset(Part)


FULL = Extent()
QUICK = Extent(
    effort=Effort((24, 52), (10,), (5,), settings=1, iterations=(40, 40)),
    steps={"decoder-a": 120, "decoder-b": 40, "classifier": 50},
    **{"validation": 4, "test": 4, "repeats": 1, "iterations": 20, "compacted": 16, "long": 100},
    parts=frozenset(Part) - {Part.DECODER_B},
)


@dataclass(frozen=True)
class Results:
    """What a run found: contests and who could not take part in them by the scene's name, and the measures."""

    contests: dict[str, list[Standing]]
    figures: list[MeasuredRatio]
    missing: dict[str, list[Missing]]


def run(parts: Collection[Part], extent: Extent, folder: Path, device: torch.device, seed: int) -> Iterator[Results]:
    """Run ``parts``, with what is known so far after each of them; models are kept in ``folder``."""
    stage = _Stage(extent, folder, device, seed)
    results = Results({}, [], {})
    for part in Part:
        if part in parts:
            print(part.value, flush=True)
            results.figures.extend(_figures(part, stage, results))
            results.figures.sort(key=lambda figure: figure.measure)
            yield results


def _figures(part: Part, stage: _Stage, results: Results) -> Iterator[MeasuredRatio]:
    extent, repeats = stage.extent, 2 * stage.extent.repeats + 1
    if part is Part.COST:
        yield measures.iteration_cost(stage.device, repeats, extent.iterations)
    elif part is Part.CLASSIFIER:
        yield from _attack_figures(stage.contest(CLASSIFIER, entrants.of_attack(RADIUS, extent.effort), results))
    elif part is Part.DECODER_A:
        standings = stage.contest(DECODER_A, entrants.of_latent_fitting(extent.effort), results)
        yield from _fitting_figures(DECODER_A.name, standings)
    elif part is Part.DECODER_B:
        standings = stage.contest(DECODER_B, entrants.of_second_decoder(extent.effort), results)
        yield from _fitting_figures(DECODER_B.name, standings)
    elif part is Part.COMPACTION:
        model, digits = stage.load(CLASSIFIER)
        pool = to_device(rows_of(digits.test, slice(2 * extent.compacted)), stage.device)
        yield measures.half_converged(model, pool, repeats, extent.iterations)
    elif part is Part.MEMORY:
        yield from measures.memory_growth(stage.scene(DECODER_A, 8), long=extent.long)


def _fitting_figures(name: str, standings: list[Standing]) -> Iterator[MeasuredRatio]:
    for baseline in _present(standings, entrants.BILEVEL_ADAM, entrants.PEER_ADAM):
        measure = f"2 evaluations: fewer than {baseline} ({name})"
        yield measures.times_cheaper(measure, 10.0, standings, baseline, "evaluations")


def _attack_figures(standings: list[Standing]) -> Iterator[MeasuredRatio]:
    for baseline in _present(standings, entrants.BILEVEL_PGD_COLD, entrants.PEER_PGD_COLD):
        yield measures.times_cheaper(f"3 seconds: less than {baseline}", 8.0, standings, baseline, "seconds")
    for baseline in _present(standings, entrants.BILEVEL_PGD_WARM, entrants.PEER_PGD_WARM):
        yield measures.times_cheaper(f"4 seconds: less than {baseline}", 2.0, standings, baseline, "seconds")


def _present(standings: list[Standing], *names: str) -> list[str]:
    taking_part = {standing.entrant.name for standing in standings}
    return [name for name in names if name in taking_part]


@dataclass
class _Stage:
    extent: Extent
    folder: Path
    device: torch.device
    seed: int

    def load(self, known: ContestModel) -> tuple[Any, Digits]:
        model, digits = known.load(self.folder, self.seed, self.extent.steps.get(known.name))
        return model.to(self.device), digits

    def scene(self, known: ContestModel, test: int) -> Scene:
        model, digits = self.load(known)
        images = [
            to_device(rows_of(split, slice(count)), self.device)
            for split, count in ((digits.validation, self.extent.validation), (digits.test, test))
        ]
        validation, tested = ((model.problem(batch), *model.start(batch)) for batch in images)
        return Scene(known.name, known.unit, validation, tested, self.seed, self.extent.exact)

    def contest(self, known: ContestModel, taking_part: list[Entrant | Missing], results: Results) -> list[Standing]:
        scene = self.scene(known, self.extent.test)
        print(f"{known.name}: settings chosen on {self.extent.validation} validation images", flush=True)
        standings = hold(scene, [one for one in taking_part if isinstance(one, Entrant)], self.extent.repeats)
        results.contests[known.name] = standings
        results.missing[known.name] = [one for one in taking_part if isinstance(one, Missing)]
        return standings
