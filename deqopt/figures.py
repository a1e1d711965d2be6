"""The figures that several tasks and callbacks draw, and how they are written."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray
from torch import Tensor

from deqopt.compare import Estimate, Measure, Summary
from deqopt.iteration import Trace

GAP = 0.04
"""On each side of an image, in widths of an image."""


def image_rows(rows: Mapping[str, Tensor], title: str, notes: Sequence[str] = ()) -> Figure:
    """Images in labelled rows, one column a sample.

    Args:
        rows: label to images (N, 1 or 3, H, W) in [0, 1]; all rows of the same N.
        title: above the grid.
        notes: below every column, such as its PSNR.
    """
    columns = next(iter(rows.values())).shape[0]
    figure = Figure(figsize=(0.9 * columns + 1.4, 1.0 * len(rows) + 0.7), layout="constrained")
    axes, middles = _pictures(figure, list(rows.values()), title)
    axes.set_yticks(middles, list(rows), fontsize=9)
    axes.set_xticks([column + 0.5 for column in range(len(notes))], notes, fontsize=7, parse_math=False)
    return figure


def image_mosaic(images: Tensor, title: str, columns: int = 8) -> Figure:
    """Images (N, 1 or 3, H, W) in [0, 1], row by row."""
    rows = images.split(columns)
    figure = Figure(figsize=(0.9 * columns, 0.9 * len(rows) + 0.5), layout="constrained")
    _pictures(figure, rows, title)
    return figure


def _pictures(figure: Figure, rows: Sequence[Tensor], title: str) -> tuple[Axes, list[float]]:
    """Rows of images (N, 1 or 3, H, W) of width 1 in one system of axes, which is drawn much faster than one for each.

    Returns:
        The axes, and where the middle of every row is.
    """
    axes, middles, top = figure.subplots(), [], 0.0
    for images in rows:
        height = images.shape[2] / images.shape[3]
        pixels = images.detach().float().cpu().clamp(0, 1).permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
        for column, image in enumerate(pixels.numpy()):
            axes.imshow(image, extent=(column + GAP, column + 1 - GAP, top + height - GAP, top + GAP))
        middles.append(top + height / 2)
        top += height
    axes.set(xlim=(0, max(len(images) for images in rows)), ylim=(top, 0), xticks=[], yticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=10)
    return axes, middles


def convergence(trace: Trace) -> Figure:
    """Objective and residual against evaluations: median, and the middle 80% of the samples."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (name, values) in zip(
        panels, (("objective", trace.objective), ("residual", trace.residual)), strict=True
    ):
        curves = values.detach().float().cpu().numpy()
        evaluations = np.arange(1, len(curves) + 1)
        low, middle, high = np.transpose([_quantiles(row[np.isfinite(row)]) for row in curves])
        axes.fill_between(evaluations, low, high, alpha=0.25, label="10% to 90% of the samples")
        axes.plot(evaluations, middle, marker="." if len(curves) == 1 else None, label="median")
        if not (low <= 0).any():
            axes.set_yscale("log")
        axes.set(xlabel="evaluations", ylabel=name)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.suptitle("Objective and residual of the iterates", fontsize=10)
    return figure


def comparison(summary: Summary, title: str) -> Figure:
    """A panel a measure, a line a method: its mean as a dot, with its interval; the first method's mean as a line.

    Every method has a line of its own, so that none hides another. Measures that have a median alone are left out.
    """
    measures = [one for one in summary.measures if not one.median]
    names = [textwrap.fill(method, 30) for method in summary.methods]
    figure = Figure(
        figsize=(2.0 + 2.6 * len(measures), 1.1 + 0.3 * len("\n".join(names).splitlines())), layout="constrained"
    )
    panels = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
    for axes, one in zip(panels, measures, strict=True):
        means = [means.get(one.metric) for means in summary.means.values()]
        for line, estimate in enumerate(means):
            if estimate is not None:
                half_width = one.factor * np.nan_to_num(estimate.half_width)
                axes.errorbar(one.factor * estimate.mean, line, xerr=half_width, fmt="o", capsize=3, color=f"C{line}")
        if means[0] is not None:
            axes.axvline(one.factor * means[0].mean, color="black", linestyle=":", linewidth=1, zorder=0)
        axes.set_xlabel(one.heading, parse_math=False)
        axes.grid(axis="x", alpha=0.3)
        axes.locator_params(axis="x", nbins=5)
    panels[0].set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def draw_curves(axes: Axes, curves: Mapping[str, Mapping[float, Estimate]], measure: Measure) -> None:
    """A curve a method through its means with their intervals, each beside the others by as much as a dot is wide.

    So curves that coincide are all visible.

    Args:
        axes: to draw into; the y axis is labelled by the measure.
        curves: the estimates of a method by their place on the x axis.
    """
    for place, (name, points) in enumerate(curves.items()):
        beside = ScaledTranslation((place - (len(curves) - 1) / 2) * 5 / 72, 0, axes.figure.dpi_scale_trans)
        drawn = axes.errorbar(
            list(points),
            [measure.factor * one.mean for one in points.values()],
            [measure.factor * np.nan_to_num(one.half_width) for one in points.values()],
            fmt="o-",
            markersize=4,
            linewidth=1,
            capsize=2,
            color=f"C{place}",
            label=name,
        )
        for artist in drawn.get_children():
            artist.set_transform(axes.transData + beside)  # afterwards, so that the limits are those of the data
    axes.set_ylabel(measure.heading, parse_math=False)
    axes.grid(alpha=0.3)


def _quantiles(values: NDArray[Any]) -> NDArray[Any]:
    return np.quantile(values, (0.1, 0.5, 0.9)) if values.size else np.full(3, np.nan)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a PNG; an existing file is replaced only by a complete one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png", dpi=130)
    os.replace(partial, path)
