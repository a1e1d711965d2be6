"""Summary of the scores of methods: means, intervals and paired differences, as a table and as a CSV."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from deqopt.compare.scores import Estimate, Scores, cell, log_name
from deqopt.tables import folded, write_csv


@dataclass(frozen=True)
class Measure:
    """A kind of score, and how it is shown.

    Args:
        metric: name of the score in `Scores.values`, in logged values and in the CSV.
        label: heading of the column; by default ``metric``.
        factor: factor for the shown scores, such as 100 for %. Log and CSV contain the original scores.
        digits: number of digits after the decimal point.
        bounds: bounds of the scores; intervals are drawn within them.
        median: whether the score is summarised by its median alone, as for seconds, without interval, difference and
            log.

    Example:
        >>> Measure("accuracy", "accuracy in %", factor=100).shown(0.5)
        '50.00'
    """

    metric: str
    label: str = ""
    factor: float = 1.0
    digits: int = 2
    bounds: tuple[float, float] = (-math.inf, math.inf)
    median: bool = False

    @property
    def heading(self) -> str:
        return self.label or self.metric

    def shown(self, value: float, sign: str = "") -> str:
        """The value as text, empty if it is NaN; with ``sign="+"``, positive values get a sign too."""
        return "" if math.isnan(value) else format(self.factor * value, f"{sign}.{self.digits}f")

    def drawn(self, estimate: Estimate) -> tuple[float, list[float]]:
        """The shown mean, and the lengths of the interval below and above it, within the bounds."""
        half_width = 0.0 if math.isnan(estimate.half_width) else estimate.half_width
        low, high = (abs(bound - estimate.mean) for bound in self.bounds)
        return self.factor * estimate.mean, [self.factor * min(half_width, low), self.factor * min(half_width, high)]


@dataclass(frozen=True, eq=False)
class Summary:
    """Summary of scores: all means and all paired differences to the first method, each with its interval.

    Args:
        scores: scores of all samples.
        measures: scores to summarise, in the order of the columns.
        noun: word for the samples, such as images or episodes.
        details: columns of text, by heading and then by method, such as the settings of the methods.

    Attributes:
        means: ``means[method][metric]``; for a `Measure` with ``median``, the median without an interval.
        differences: paired differences of all methods but the first to the first method.

    Example:
        >>> from deqopt.compare import Scores
        >>> values = {"ours": {"psnr": [20.0, 22.0, 27.0]}, "mean image": {"psnr": [9.0, 10.0, 11.0]}}
        >>> summary = Summary(Scores([0, 1, 2], values), [Measure("psnr", "PSNR in dB")], noun="images")
        >>> summary.logged()
        {'psnr_ours': 23.0, 'psnr_mean_image': 10.0}
        >>> print(summary.table())
                     PSNR in dB    minus ours
        ours        23.00 ±8.96
        mean image  10.00 ±2.48  -13.00 ±6.57
    """

    scores: Scores
    measures: Sequence[Measure]
    noun: str = "samples"
    details: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    means: Mapping[str, Mapping[str, Estimate]] = field(init=False)
    differences: Mapping[str, Mapping[str, Estimate]] = field(init=False)

    def __post_init__(self) -> None:
        means: dict[str, dict[str, Estimate]] = {}
        differences: dict[str, dict[str, Estimate]] = {}
        for method, values in self.scores.values.items():
            shown = [one for one in self.measures if one.metric in values]
            means[method] = {one.metric: _summed_up(values[one.metric], one) for one in shown}
            if method != self.first:
                pairs = {one.metric: self.scores.difference(method, one.metric) for one in shown if not one.median}
                differences[method] = {metric: pair for metric, pair in pairs.items() if pair.count}
        object.__setattr__(self, "means", means)
        object.__setattr__(self, "differences", differences)

    @property
    def first(self) -> str:
        """The method that the others are compared with."""
        return next(iter(self.scores.values), "")

    @property
    def methods(self) -> list[str]:
        return list(self.scores.values)

    def logged(self) -> dict[str, float]:
        """The means by ``<metric>_<log_name(method)>``."""
        return {
            f"{one.metric}_{log_name(method)}": means[one.metric].mean
            for one in self.measures
            if not one.median
            for method, means in self.means.items()
            if one.metric in means
        }

    def table(self, width: int = 80) -> str:
        """A readable table, one row per method, with lines no longer than ``width``; below it, notes on missing scores.

        Differences are shown for the first measure only; the CSV contains all differences.
        """
        columns = []
        for position, one in enumerate(self.measures):
            means = [self.means[method].get(one.metric) for method in self.methods]
            if any(means):
                columns.append([one.heading, *_texts(one, means)])
            if position == 0 and self.differences:
                pairs = [self.differences.get(method, {}).get(one.metric) for method in self.methods]
                columns.append([f"minus {self.first}", *_texts(one, pairs, "+")])
        for heading, texts in self.details.items():
            columns.append([heading, *(texts.get(method, "") for method in self.methods)])
        notes = [line for note in self._missing() for line in textwrap.wrap(note, width)]
        return "\n".join([folded(["", *self.methods], columns, width), *notes])

    def rows(self) -> tuple[list[str], list[list[object]]]:
        """Columns and rows of a CSV, one row per method; cells without a value are empty.

        The columns are ``method``, for every measure ``<metric>``, ``<metric>_half_width``, ``<metric>_minus_<first>``,
        ``<metric>_minus_<first>_half_width``, and the number of samples in a column with the noun as its name. There is
        ``<metric>_missing`` if a sample has no such score. A `Measure` with ``median`` has only ``<metric>``. The
        details come last.
        """
        columns: dict[str, list[object]] = {"method": [*self.methods]}
        for one in self.measures:
            means = [self.means[method].get(one.metric) for method in self.methods]
            pairs = [self.differences.get(method, {}).get(one.metric) for method in self.methods]
            columns[one.metric] = _cells(means, "mean")
            if not one.median:
                minus = f"{one.metric}_minus_{log_name(self.first)}"
                columns[f"{one.metric}_half_width"] = _cells(means, "half_width")
                columns |= {minus: _cells(pairs, "mean"), f"{minus}_half_width": _cells(pairs, "half_width")}
            if any(mean.missing for mean in means if mean):
                columns[f"{one.metric}_missing"] = _cells(means, "missing")
        columns[self.noun] = [len(self.scores)] * len(self.methods)
        for heading, texts in self.details.items():
            columns[heading] = [texts.get(method, "") for method in self.methods]
        return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]

    def write(self, path: Path) -> None:
        """Write :meth:`rows` as CSV; an existing file is replaced only by a complete one."""
        write_csv(*self.rows(), path)

    def _missing(self) -> list[str]:
        """Notes on the samples that are left out of a mean; methods with the same note share it."""
        notes = []
        for one in self.measures:
            counts = {method: means[one.metric].missing for method, means in self.means.items() if one.metric in means}
            for count in sorted({count for count in counts.values() if count}):
                of = [method for method, missing in counts.items() if missing == count]
                whose = "" if len(of) == len(counts) else f" of {', '.join(of)}"
                notes.append(
                    f"Note: {one.heading}{whose} has no value for {count} of {len(self.scores)} {self.noun}, which are "
                    "left out of the mean"
                )
        return notes


def _summed_up(values: Tensor, measure: Measure) -> Estimate:
    whole = Estimate.of(values)
    if not measure.median or not whole.count:
        return whole
    return Estimate(float(values.nanquantile(0.5)), math.nan, whole.count, whole.missing)


def _texts(measure: Measure, estimates: Sequence[Estimate | None], sign: str = "") -> list[str]:
    """The means and the half widths, such as ``85.00 ±27.76``, aligned below each other."""
    means = ["" if one is None else measure.shown(one.mean, sign) for one in estimates]
    widths = ["" if one is None else measure.shown(one.half_width) for one in estimates]
    intervals = [f" ±{width}" if width else "" for width in widths]
    most = max(map(len, intervals))
    return [mean + interval.ljust(most) for mean, interval in zip(means, intervals, strict=True)]


def _cells(estimates: Sequence[Estimate | None], attribute: str) -> list[object]:
    return ["" if one is None else cell(getattr(one, attribute)) for one in estimates]
