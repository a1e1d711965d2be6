"""What ``python -m benchmarks.fewshot`` has measured, as a table and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.timed import CURVE, read_runs
from deqopt.compare import Estimate
from deqopt.data.splits import Part
from deqopt.figures import write_figure

Run = Mapping[str, Any]
Scene = tuple[str, int, int, int, float, float, float]
"""Data, ways, shots, number of episodes, seconds, distortion: what runs must share to be compared."""


def write(folder: Path, labels: Mapping[str, str], part: Part = Part.TEST) -> str:
    """Write ``fewshot-PART.png`` and ``results-PART.md`` from all files of runs in ``folder``; returns the table.

    Args:
        labels: of the methods by name, in the order of the table.
        part: TEST or VAL: the runs that are reported, which were on episodes of this part.
    """
    order = list(labels)
    runs = sorted(
        (run for run in read_runs(folder) if run["part"] == part.value),
        key=lambda run: (_scene(run), order.index(run["method"]), run["seed"]),
    )
    if not runs:
        return f"no {part.value} runs in {folder}"
    scenes = {scene: [run for run in runs if _scene(run) == scene] for scene in dict.fromkeys(map(_scene, runs))}
    write_figure(_figure(scenes, labels, part), folder / f"fewshot-{part.value}.png")
    text = "\n\n".join("\n".join(_table(_title(scene, part), of_scene, labels)) for scene, of_scene in scenes.items())
    (folder / f"results-{part.value}.md").write_text(text + "\n")
    return text


def accuracies(run: Run, mark: int = -1) -> list[float]:
    """Shares of the queries that are classified rightly, of every episode in the order of their numbers."""
    return [right / run["queries"] for right in run["marks"][mark]["right"]]


def difference(run: Run, other: Run) -> Estimate:
    """Of the accuracies at the end of training, ``run`` minus ``other``, paired episode by episode."""
    return Estimate.of([a - b for a, b in zip(accuracies(run), accuracies(other), strict=True)])


def _scene(run: Run) -> Scene:
    return run["data"], run["ways"], run["shots"], run["episodes"], run["budget"], *run["distort"]


def _title(scene: Scene, part: Part) -> str:
    data, ways, shots, episodes, budget, *distort = scene
    told = "distorted by {:g} and {:g}".format(*distort) if any(distort) else "as they are"
    return f"{ways}-way {shots}-shot, {episodes} {part.value} episodes of {data}, {budget:g} s, training images {told}"


def _table(title: str, runs: Sequence[Run], labels: Mapping[str, str]) -> list[str]:
    """A row a run; accuracies in % with 95 % confidence intervals over the episodes."""
    shares = [f"after {100 * share:g} %" for share in CURVE[:-1]]
    first = runs[0]["method"]  # what the others are compared with
    columns = ["method", "seed", "steps", "episodes", *shares, "accuracy in %", f"{labels[first]} minus it"]
    columns += ["ms/episode", "inner objective", "below start", "evaluations", "residual", "backward"]
    reference = {run["seed"]: run for run in runs if run["method"] == first}
    rows = [columns, ["---"] * len(columns)]
    for run in runs:
        last = run["marks"][-1]
        cells = [labels[run["method"]], str(run["seed"]), str(last["steps"]), str(last["episodes"])]
        cells += [_percent(Estimate.of(accuracies(run, k))) for k in range(len(run["marks"]))]
        base = None if run["method"] == first else reference.get(run["seed"])
        cells += ["" if base is None else _percent(difference(base, run), "+"), f"{last['milliseconds']:.1f}"]
        rows.append([*cells, *_solves(last["solves"]), _backward(last["backward"])])
    return [title, "", *(f"| {' | '.join(row)} |" for row in rows)]


def _percent(estimate: Estimate, sign: str = "") -> str:
    interval = "" if math.isnan(estimate.half_width) else f" +- {100 * estimate.half_width:.2f}"
    return f"{'+' if sign and estimate.mean > 0 else ''}{100 * estimate.mean:.2f}{interval}"


def _solves(solves: Mapping[str, float] | None) -> list[str]:
    if solves is None:
        return [""] * 4
    objective = f"{solves['before']:.3f} -> {solves['after']:.3f}"
    return [objective, f"{100 * solves['below_start']:.1f} %", f"{solves['nfe']:.1f}", f"{solves['residual']:.1e}"]


def _backward(backward: Mapping[str, float] | None) -> str:
    """How the linear systems in training were solved; empty for a gradient without any."""
    if backward is None:
        return ""
    products, residual, unsolved = (backward[name] for name in ("products", "residual", "unsolved"))
    return f"{products:.0f} products, residual {residual:.1e}, {100 * unsolved:.0f} % unsolved"


def _figure(scenes: Mapping[Scene, Sequence[Run]], labels: Mapping[str, str], part: Part) -> Figure:
    """A panel a scene: every run at every mark, with the confidence intervals over the episodes."""
    figure = Figure(figsize=(6 * len(scenes), 4.4), layout="constrained")
    for axes, (scene, runs) in zip(
        figure.subplots(1, len(scenes), squeeze=False, sharey=True)[0], scenes.items(), strict=True
    ):
        _draw(axes, runs, labels)
        axes.set_title(_title(scene, part).replace(", training", ",\ntraining"), fontsize=10)
    return figure


def _draw(axes: Axes, runs: Sequence[Run], labels: Mapping[str, str]) -> None:
    colours = {method: f"C{k}" for k, method in enumerate(labels)}
    named: set[str] = set()
    for run in runs:
        method = run["method"]
        reached = [Estimate.of(accuracies(run, k)) for k in range(len(run["marks"]))]
        axes.errorbar(
            [one["seconds"] for one in run["marks"]],
            100 * np.array([one.mean for one in reached]),
            100 * np.nan_to_num([one.half_width for one in reached]),
            color=colours[method],
            marker="o",
            markersize=3,
            linewidth=1,
            capsize=2,
            label=None if method in named else labels[method],
        )
        named.add(method)
    axes.set(xlabel="seconds of training, one core", ylabel="accuracy in %", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
