"""What a run leaves behind: tables, a JSON file and the plots."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.competitors import Missing, Side
from benchmarks.contest import Curve, Standing
from benchmarks.entrants import BILEVEL_ADAM, BILEVEL_PGD_WARM
from benchmarks.measures import Figure
from benchmarks.program import Results
from benchmarks.training import CLASSIFIER, DECODER_A, DECODER_B

Row = Sequence[str]
OBJECTIVES = {
    DECODER_A.name: "squared error a pixel, of pixels from -1 to 1, with the prior",
    DECODER_B.name: "squared error a pixel, of pixels from -1 to 1, with the prior",
    CLASSIFIER.name: "minus the cross-entropy that the attack reaches",
}


def write(results: Results, folder: Path, setting: dict[str, Any]) -> str:
    """Write ``results.md``, ``results.json`` and a picture a contest into ``folder``; returns the text of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(_text(results, setting)) + "\n"
    (folder / "results.md").write_text(text)
    (folder / "results.json").write_text(json.dumps(_plain(results, setting), indent=1) + "\n")
    for name, standings in results.contests.items():
        _plot(name, standings, folder / f"{name}.png")
    return text


def _text(results: Results, setting: dict[str, Any]) -> Iterator[str]:
    yield "# Benchmark of deqopt"
    yield ""
    yield ", ".join(f"{name} {value}" for name, value in setting.items())
    if results.figures:
        yield ""
        rows = [
            [figure.measure, _bound(figure), _ratio(figure.value), "yes" if figure.met else "no", figure.detail]
            for figure in results.figures
        ]
        yield from _table(["measure", "target", "reached", "met", "from"], rows)
    for name, standings in results.contests.items():
        yield ""
        yield f"## {name}"
        yield ""
        goal = _goal(standings)
        reached = goal.test.at(goal.chosen).objective
        yield f"Objective: {OBJECTIVES[name]}, lower is better. Goal: that of {goal.entrant.name}, {reached:.5g}."
        yield ""
        yield from _table(*_contest(standings, results.missing[name], reached))
        yield ""
        yield f"![objective against seconds and evaluations]({name}.png)"


def _contest(standings: Sequence[Standing], missing: Sequence[Missing], goal: float) -> tuple[Row, list[Row]]:
    """One row an entrant: its last point or its own optimum, and what it took to reach ``goal``."""
    header = ["strategy", "from", "settings", "steps or budget", "evaluations", "seconds", "objective"]
    rows: list[Row] = []
    for standing in standings:
        mark, curve = standing.test.at(standing.chosen), standing.test
        spent = [f"{mark.evaluations:.0f}", f"{mark.seconds:.2f}", f"{mark.objective:.5g}"]
        needed = [_cost(curve.fewest_evaluations(goal), ".0f"), _cost(curve.least_seconds(goal), ".2f")]
        side = standing.entrant.side.value
        rows.append([standing.entrant.name, side, mark.settings, str(mark.label), *spent, *needed])
    rows += [[one.name, Side.PEER.value, one.reason, *["-"] * 6] for one in missing]
    return [*header, "evaluations to the goal", "seconds to the goal"], rows


def _goal(standings: Sequence[Standing]) -> Standing:
    """The warm baseline that is to be beaten."""
    return next(one for one in standings if one.entrant.name in (BILEVEL_ADAM, BILEVEL_PGD_WARM))


def _cost(value: float, shape: str) -> str:
    return format(value, shape) if math.isfinite(value) else "never"


def _table(header: Row, rows: Sequence[Row]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, ["-" * width for width in widths], *rows):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"


def _bound(figure: Figure) -> str:
    return f"{'>=' if figure.at_least else '<='} {figure.target:g}"


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
                    "validation": _marks(standing.validation),
                    "test": _marks(standing.test),
                }
                for standing in standings
            ]
            for name, standings in results.contests.items()
        },
        "missing": {name: [asdict(one) for one in missing] for name, missing in results.missing.items()},
    }


def _marks(curve: Curve) -> list[dict[str, Any]]:
    return [
        {name: _finite(value) if isinstance(value, float) else value for name, value in asdict(mark).items()}
        for mark in curve.marks
    ]


def _finite(value: float) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return value if math.isfinite(value) else None


def _plot(name: str, standings: Sequence[Standing], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    picture = Picture(figsize=(13, 5.5), layout="constrained")
    FigureCanvasAgg(picture)
    lowest = min(0.0, *(standing.test.best for standing in standings))  # a log scale shows positive numbers only
    styles = {Side.OURS: ("-", 2.2), Side.BASELINE: ("--", 1.2), Side.PEER: (":", 1.4)}
    panels = picture.subplots(1, 2, sharey=True)
    for axes, unit in zip(panels, ("evaluations", "seconds"), strict=True):
        for index, standing in enumerate(standings):
            marks = [mark for mark in standing.test.marks if math.isfinite(mark.objective)]
            line, width = styles[standing.entrant.side]
            along, heights = [getattr(mark, unit) for mark in marks], [mark.objective - lowest for mark in marks]
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
    picture.suptitle(f"{name}: test images")
    picture.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    picture.savefig(path, dpi=110)
