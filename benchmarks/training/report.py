"""What trainings have found, in a file each: for every scene a comparison, and the scores against training time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from deqopt.compare import Estimate, Measure, Scores, Summary, log_name
from deqopt.figures import comparison, draw_curves, write_figure


@dataclass(frozen=True)
class Milestone:
    """What a network reaches after so many steps, which took so many seconds.

    Attributes:
        scores: by metric, of every test sample in their order.
    """

    seconds: float
    steps: int
    scores: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class TrainingRun:
    """A training that is over.

    Attributes:
        scene: what runs share that are compared: data, part, seconds.
        method: its label.
        seed: of its weights and batches.
        milestones: ascending.
        notes: what else there is to say of it.
    """

    scene: str
    method: str
    seed: int
    milestones: Sequence[Milestone]
    notes: Mapping[str, float] = field(default_factory=dict)

    def path(self, folder: Path) -> Path:
        return path_of(folder, self.scene, self.method, self.seed)

    def write(self, folder: Path) -> None:
        path = self.path(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> list[TrainingRun]:
        """All runs in a folder, by the names of their files."""
        found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        return [cls(**{**one, "milestones": [Milestone(**part) for part in one["milestones"]]}) for one in found]


def path_of(folder: Path, scene: str, method: str, seed: int) -> Path:
    """The file of a run."""
    return folder / f"{log_name(method)}-{log_name(scene)}-{seed}.json"


class Report(NamedTuple):
    """How a benchmark reports.

    Attributes:
        measures: of its scores; pictures against time show the first.
        methods: their labels in the order of the tables; the others are compared with the first.
        noun: of the test samples.
    """

    measures: Sequence[Measure]
    methods: Sequence[str]
    noun: str

    def write(self, folder: Path) -> str:
        """Write for every scene with runs in ``folder`` SCENE.csv, SCENE.png and SCENE_time.png, and all tables into
        results.txt; returns these."""
        known = [run for run in TrainingRun.read(folder) if run.method in self.methods]
        runs = sorted(known, key=lambda run: (self.methods.index(run.method), run.seed))
        texts = []
        for scene in sorted({run.scene for run in runs}):
            mine = [run for run in runs if run.scene == scene]
            summary, path = self.summary(mine), folder / log_name(scene)
            summary.write(path.with_suffix(".csv"))
            write_figure(comparison(summary, scene), path.with_suffix(".png"))
            write_figure(self._over_time(mine, scene), folder / f"{path.name}_time.png")
            seeds = f", {len(summary.scores)} seeds" if summary.noun == "seeds" else ""
            texts.append(f"{scene}{seeds}\n{summary.table(width=120)}")
        if not texts:
            return f"no runs in {folder}"
        (folder / "results.txt").write_text("\n\n".join(texts) + "\n")
        return "\n\n".join(texts)

    def summary(self, runs: Sequence[TrainingRun]) -> Summary:
        """Of the last milestones: over the test samples, or over the seeds where there are several."""
        seeds = sorted({run.seed for run in runs})
        noun = self.noun if len(seeds) == 1 else "seeds"
        return Summary(_scores(runs, seeds, -1), self.measures, noun, self._details(runs))

    def _over_time(self, runs: Sequence[TrainingRun], title: str) -> Figure:
        """The first measure at every milestone, with its interval."""
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes, measure = figure.subplots(), self.measures[0]
        curves: dict[str, dict[float, Estimate]] = {}
        for method in dict.fromkeys(run.method for run in runs):
            mine = [run for run in runs if run.method == method]
            seeds, points = [run.seed for run in mine], range(len(mine[0].milestones))
            reached = [Estimate.of(_scores(mine, seeds, at).values[method][measure.metric]) for at in points]
            seconds = [fmean(run.milestones[at].seconds for run in mine) for at in points]
            curves[method] = dict(zip(seconds, reached, strict=True))
        draw_curves(axes, curves, measure)
        axes.set(xlabel="seconds of training, one core", xlim=(0, None))
        axes.set_title(title, fontsize=10, wrap=True)
        axes.legend(fontsize=8)
        return figure

    def _details(self, runs: Sequence[TrainingRun]) -> dict[str, dict[str, str]]:
        """What there is to say of the runs of every method: steps, the first measure of every seed of several, and
        the notes."""
        first, several = self.measures[0], len({run.seed for run in runs}) > 1
        columns: dict[str, dict[str, list[str]]] = {}
        for run in runs:
            last = run.milestones[-1]
            told = {"steps": str(last.steps)}
            if several:
                told["of every seed"] = f"{run.seed}: {first.shown(fmean(last.scores[first.metric]))}"
            told |= {name: f"{value:.2g}" for name, value in run.notes.items()}
            for name, text in told.items():
                columns.setdefault(name, {}).setdefault(run.method, []).append(text)
        return {name: {method: ", ".join(texts) for method, texts in one.items()} for name, one in columns.items()}


def _scores(runs: Sequence[TrainingRun], seeds: Sequence[int], milestone: int) -> Scores:
    """Of runs of one seed those of every sample; of several their means, a seed a sample."""
    at = {(run.method, run.seed): run.milestones[milestone].scores for run in runs}
    methods = dict.fromkeys(run.method for run in runs)
    if len(seeds) == 1:
        return Scores(range(len(_first_scores(runs))), {method: at[method, seeds[0]] for method in methods})
    values = {
        method: {
            metric: [fmean(at[method, seed][metric]) if (method, seed) in at else np.nan for seed in seeds]
            for metric in next(scores for (name, _), scores in at.items() if name == method)
        }
        for method in methods
    }
    return Scores(seeds, values)


def _first_scores(runs: Sequence[TrainingRun]) -> Sequence[float]:
    return next(iter(runs[0].milestones[-1].scores.values()))
