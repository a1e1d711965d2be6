"""What ``python -m benchmarks.adversarial`` has measured, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.timed import read_runs
from deqopt.figures import write_figure

Run = Mapping[str, Any]


def write(folder: Path, labels: Mapping[str, str], radius: float) -> str:
    """Write ``robustness.png`` and ``results.md`` from all files of test runs in ``folder``; returns the table."""
    runs = read_runs(folder, "*-test-*.json")
    if not runs:
        return f"no test runs in {folder}"
    groups = {key: [run for run in runs if _key(run) == key] for key in dict.fromkeys(map(_key, runs))}
    write_figure(_figure(groups, labels, radius), folder / "robustness.png")
    text = "\n".join(_table(groups, labels))
    (folder / "results.md").write_text(text + "\n")
    return text


def _key(run: Run) -> tuple[str, float]:
    return run["method"], run["budget"]


def _table(groups: Mapping[tuple[str, float], Sequence[Run]], labels: Mapping[str, str]) -> list[str]:
    """Means over seeds at the end of training, with the lowest and the highest."""
    lines = [
        "| training | seconds | steps | clean | robust | seeds | images |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (method, _), runs in groups.items():
        last = [run["marks"][-1] for run in runs]
        cells = [labels[method], _mean(last, "seconds", 1, ".0f"), _mean(last, "steps", 1, ".0f")]
        cells += [_spread([100 * one[name] for one in last]) for name in ("clean", "robust")]
        lines.append("| " + " | ".join([*cells, str(len(runs)), str(runs[0]["images"])]) + " |")
    return lines


def _mean(marks: Sequence[Mapping[str, float]], name: str, factor: float, form: str) -> str:
    return format(factor * float(np.mean([one[name] for one in marks])), form)


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f} % ({min(values):.1f} to {max(values):.1f})"


def _figure(groups: Mapping[tuple[str, float], Sequence[Run]], labels: Mapping[str, str], radius: float) -> Figure:
    """The mean over seeds at every mark, and the range of the seeds."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    colours = {method: f"C{k}" for k, method in enumerate(dict.fromkeys(method for method, _ in groups))}
    longest = max(budget for _, budget in groups)
    for (method, budget), runs in groups.items():
        seconds = np.mean([[one["seconds"] for one in run["marks"]] for run in runs], axis=0)
        robust = 100 * np.array([[one["robust"] for one in run["marks"]] for run in runs])
        label = labels[method] if budget == longest else None
        style = "-" if budget == longest else ":"
        axes.plot(seconds, robust.mean(0), style, color=colours[method], marker="o", markersize=3, label=label)
        axes.fill_between(seconds, robust.min(0), robust.max(0), color=colours[method], alpha=0.15)
    axes.set(xlabel="seconds of training, one core", ylabel="robust accuracy in %", xlim=(0, None))
    axes.set_title(f"MNIST, PGD of 50 steps, L2 radius {radius:g}; dotted: shorter schedules", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
