"""Accuracy against radius, as a figure and as a table."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from deqopt.tables import write_csv

from .evaluation import Summary


def accuracy_against_radius(summary: Summary) -> Figure:
    """A curve for each swept attack, a point for each other, from the clean accuracy at radius 0."""
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    radius = summary.threat.radius
    for name, points in _points(summary).items():
        radii = sorted(points)
        axes.plot(radii, [100 * points[radius] for radius in radii], marker="o", markersize=3, label=name)
    axes.axvline(radius, color="black", linestyle=":", linewidth=1, label=f"trained radius {radius:g}")
    axes.axhline(100 * summary.clean, color="black", linestyle="--", linewidth=1, label="clean")
    axes.set(xlabel=f"{summary.threat.norm.name} radius", ylabel="accuracy in %", ylim=(0, 100))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    axes.set_title(f"Accuracy under attack, {summary.images} test images", fontsize=10)
    return figure


def write_table(summary: Summary, path: Path) -> None:
    """The same points as CSV; an existing file is replaced only by a complete one."""
    rows = [
        [name, summary.threat.norm.name, radius, points[radius], summary.images]
        for name, points in _points(summary).items()
        for radius in sorted(points)
    ]
    write_csv(["attack", "norm", "radius", "accuracy", "images"], rows, path)


def _points(summary: Summary) -> dict[str, dict[float, float]]:
    """Accuracy by radius, for every attack by name and for the worst of all."""
    points: dict[str, dict[float, float]] = {}
    for trial, share in summary.sweep.items():
        points.setdefault(trial.attack.name, {0.0: summary.clean})[trial.radius] = share
    for attack, share in summary.attacked.items():
        points.setdefault(attack.name, {})[summary.threat.radius] = share
    points["worst of all"] = {summary.threat.radius: summary.worst}
    return points
