"""What a run leaves behind: tables, a JSON file and the plots."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.solvers.contest import Curve, Missing, Side, Standing
from benchmarks.solvers.entrants import BILEVEL_ADAM, BILEVEL_PGD_WARM
from benchmarks.solvers.measures import MeasuredRatio
from benchmarks.solvers.models import CLASSIFIER, DECODER_A, DECODER_B
from benchmarks.solvers.program import Results
from deqopt.compare import Measure, Scores, Summary
from deqopt.figures import comparison, write_figure
from deqopt.tables import aligned

MODELS = {one.name: one for one in (DECODER_A, DECODER_B, CLASSIFIER)}


def write(results: Results, folder: Path, setting: dict[str, Any]) -> str:
    """Write ``results.md`` and ``results.json`` into ``folder``, and for every contest ``NAME.csv`` (what is reached at
    the end), ``NAME.png`` (the same as a picture) and ``NAME-cost.png`` (against evaluations and seconds).

    Returns:
        the text of the first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(_text(results, setting)) + "\n"
    (folder / "results.md").write_text(text)
    (folder / "results.json").write_text(json.dumps(_plain(results, setting), indent=1) + "\n")
    for name, standings in results.contests.items():
        summary = _summary(name, standings, results.missing[name])
        summary.write(folder / f"{name}.csv")
        write_figure(comparison(summary, f"{name}: test images"), folder / f"{name}.png")
        write_figure(_over_cost(name, standings), folder / f"{name}-cost.png")
    return text


def _text(results: Results, setting: dict[str, Any]) -> Iterator[str]:
    yield "# Benchmark of deqopt"
    yield ""
    yield ", ".join(f"{name} {value}" for name, value in setting.items())
    if results.figures:
        rows = [["measure", "target", "reached", "met", "from"]]
        for one in results.figures:
            rows.append([one.measure, _bound(one), _ratio(one.value), "yes" if one.met else "no", one.detail])
        yield from _block(aligned(rows))
    for name, standings in results.contests.items():
        goal = _goal(standings)
        reached = goal.test.at(goal.chosen).objective
        yield from ("", f"## {name}", "")
        yield f"Objective: {MODELS[name].told}, lower is better. Goal: that of {goal.entrant.name}, {reached:.5g}."
        yield from _block(_summary(name, standings, results.missing[name]).table(width=180))
        yield ""
        yield f"![objective against seconds and evaluations]({name}-cost.png)"


def _block(text: str) -> list[str]:
    return ["", "```", text, "```"]


def _summary(name: str, standings: Sequence[Standing], missing: Sequence[Missing]) -> Summary:
    """The objectives of all at their last point or at their own optimum, beside those of the goal, and what it took."""
    goal = _goal(standings)
    target = goal.test.at(goal.chosen).objective
    values: dict[str, dict[str, Sequence[float]]] = {}
    details: dict[str, dict[str, str]] = {}
    for standing in sorted(standings, key=lambda one: one is not goal):
        curve, who = standing.test, standing.entrant.name
        point = curve.at(standing.chosen)
        values[who] = {"objective": [value if math.isfinite(value) else math.nan for value in point.objectives]}
        told = {
            "from": standing.entrant.side.value,
            "settings": point.settings,
            "steps or budget": str(point.label),
            "evaluations": f"{point.evaluations:.0f}",
            "seconds": f"{point.seconds:.2f}",
            "evaluations to the goal": _cost(curve.least("evaluations", target), ".0f"),
            "seconds to the goal": _cost(curve.least("seconds", target), ".2f"),
        }
        for heading, text in told.items():
            details.setdefault(heading, {})[who] = text
    for one in missing:
        values[one.name] = {}
        details["settings"][one.name] = one.reason
    index = range(len(next(iter(values.values()))["objective"]))
    digits = 5 if MODELS[name].unit > 1 else 3
    return Summary(Scores(index, values), [Measure("objective", digits=digits)], "images", details)


def _goal(standings: Sequence[Standing]) -> Standing:
    """The warm baseline that is to be beaten."""
    return next(one for one in standings if one.entrant.name in (BILEVEL_ADAM, BILEVEL_PGD_WARM))


def _cost(value: float, shape: str) -> str:
    return format(value, shape) if math.isfinite(value) else "never"


def _bound(one: MeasuredRatio) -> str:
    return f"{'>=' if one.at_least else '<='} {one.target:g}"


def _ratio(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _plain(results: Results, setting: dict[str, Any]) -> dict[str, Any]:
    return {
        "setting": setting,
        "measures": [
            {**asdict(figure), "value": _finite(figure.value), "met": figure.met} for figure in results.figures
        ],
        "contests": {
            name: [
                {
                    "strategy": standing.entrant.name,
                    "from": standing.entrant.side.value,
                    "validation": _points(standing.validation),
                    "test": _points(standing.test),
                }
                for standing in standings
            ]
            for name, standings in results.contests.items()
        },
        "missing": {name: [asdict(one) for one in missing] for name, missing in results.missing.items()},
    }


def _points(curve: Curve) -> list[dict[str, Any]]:
    """What was reached at every label, with the mean for the objectives."""
    points = [{**asdict(point), "objective": point.objective} for point in curve.points]
    for point in points:
        del point["objectives"]
    return [{name: _finite(one) if isinstance(one, float) else one for name, one in point.items()} for point in points]


def _finite(value: float) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return value if math.isfinite(value) else None


def _over_cost(name: str, standings: Sequence[Standing]) -> Figure:
    """The objective at every label against evaluations and against seconds."""
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    lowest = min(0.0, *(standing.test.best for standing in standings))  # a log scale shows positive numbers only
    styles = {Side.OURS: ("-", 2.2), Side.BASELINE: ("--", 1.2), Side.PEER: (":", 1.4)}
    panels = figure.subplots(1, 2, sharey=True)
    for axes, unit in zip(panels, ("evaluations", "seconds"), strict=True):
        for index, standing in enumerate(standings):
            points = [point for point in standing.test.points if math.isfinite(point.objective)]
            line, width = styles[standing.entrant.side]
            along, heights = [getattr(one, unit) for one in points], [one.objective - lowest for one in points]
            label = f"{standing.entrant.name} ({standing.entrant.side.value})"
            axes.plot(
                along, heights, line, linewidth=width, marker="o", markersize=3, color=f"C{index % 10}", label=label
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"{unit}, {'a sample' if unit == 'evaluations' else 'the whole batch'}")
        axes.grid(alpha=0.3)
    panels[0].set_yscale("log")
    panels[0].set_ylabel("objective at the feasible point" + (f", above the lowest, {lowest:.5g}" if lowest else ""))
    figure.suptitle(f"{name}: test images")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure
