"""Comparing methods on the same samples: scores, means with intervals, paired differences, tables."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.tables import folded, write_csv


@dataclass(frozen=True)
class Measure:
    """A kind of score, and how it is shown.

    Args:
        metric: its name in `Scores.values`, in what is logged and in the CSV.
        label: the heading of its column; by default ``metric``.
        factor: scores are shown times this, such as 100 for %. Log and CSV have them as they are.
        digits: after the point.
        median: the median alone sums it up, as for seconds: no interval, no difference, no log.

    Example:
        >>> Measure("accuracy", "accuracy in %", factor=100).shown(0.5)
        '50.00'
    """

    metric: str
    label: str = ""
    factor: float = 1.0
    digits: int = 2
    median: bool = False

    @property
    def heading(self) -> str:
        return self.label or self.metric

    def shown(self, value: float, sign: str = "") -> str:
        """The value as text, empty where it is NaN; ``sign="+"`` marks positive values too."""
        return "" if math.isnan(value) else format(self.factor * value, f"{sign}.{self.digits}f")


@dataclass(frozen=True)
class Estimate:
    """A mean over samples, and the half width ``t s / sqrt(n)`` of its 95 % confidence interval.

    s is the standard deviation over the n samples, t the 97.5 % quantile of Student's distribution with n - 1 degrees
    of freedom: 1.96 where they are many.

    Attributes:
        mean: NaN of no sample.
        half_width: NaN of a single sample, and where all samples have the same value, which say nothing of others.
        count: n, the samples whose value is not NaN.
        missing: the samples whose value is NaN.

    Example:
        >>> Estimate.of([1.0, 2.0, 3.0, math.nan])
        Estimate(mean=2.0, half_width=2.4841..., count=3, missing=1)
    """

    mean: float
    half_width: float
    count: int
    missing: int = 0

    @classmethod
    def of(cls, values: Tensor | Sequence[float]) -> Estimate:
        """Of values (N,), one a sample."""
        from scipy.special import stdtrit

        values = torch.as_tensor(values, dtype=torch.float64)
        known = values[~values.isnan()]
        n = len(known)
        mean = float(known.mean()) if n else math.nan
        varied = n > 1 and bool(known.min() < known.max())
        half_width = float(stdtrit(n - 1, 0.975)) * float(known.std()) / math.sqrt(n) if varied else math.nan
        return cls(mean, half_width, n, len(values) - n)


@dataclass(frozen=True)
class Scores:
    """What methods reach on the same samples.

    Args:
        index: (N,) the number of each sample in its data.
        values: ``values[method][metric]``, (N,), NaN where a sample has no such score; methods may differ in their
            metrics. Numbers and bools are kept as float64 on the CPU.

    Raises:
        ProblemError: scores that are not one a sample; two methods with the same :func:`log_name`.

    Example:
        >>> values = {"ours": {"psnr": [20.0, 22.0, 27.0]}, "mean image": {"psnr": [9.0, 10.0, 11.0]}}
        >>> scores = Scores([0, 1, 2], values)
        >>> summary = scores.summary([Measure("psnr", "PSNR in dB")], noun="images")
        >>> summary.logged()
        {'psnr_ours': 23.0, 'psnr_mean_image': 10.0}
        >>> print(summary.table())
                    PSNR in dB     minus ours
        ours       23.00 ±8.96
        mean image 10.00 ±2.48  -13.00 ±6.57
    """

    index: Tensor
    values: Mapping[str, Mapping[str, Tensor]]

    def __init__(
        self,
        index: Tensor | Sequence[int],
        values: Mapping[str, Mapping[str, Tensor | Sequence[float]]],
    ) -> None:
        index = torch.as_tensor(index, dtype=torch.long, device="cpu")
        check_names(values)
        kept = {
            method: {metric: _scores(f"{metric} of {method!r}", one, index) for metric, one in metrics.items()}
            for method, metrics in values.items()
        }
        object.__setattr__(self, "index", index)
        object.__setattr__(self, "values", kept)

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def joined(cls, parts: Iterable[Scores]) -> Scores:
        """All samples in the order of their numbers, each once: of those with the same number the first counts.

        Scores that one part has and another has not are NaN for the samples of the other.
        """
        parts = [cls([], {}), *parts]
        metrics = {
            method: dict.fromkeys(name for part in parts for name in part.values.get(method, {}))
            for method in dict.fromkeys(method for part in parts for method in part.values)
        }
        index = torch.cat([part.index for part in parts])
        index, order = index.sort(stable=True)
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        rows = order[first]
        values = {
            method: {name: torch.cat([part._column(method, name) for part in parts])[rows] for name in names}
            for method, names in metrics.items()
        }
        return cls(index[first], values)

    def gathered(self) -> Scores:
        """Those of all processes of ``torch.distributed``, joined; all processes must call it."""
        parts = [self]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everyone: list[Scores | None] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everyone, self)
            parts = [part for part in everyone if part is not None]
        return Scores.joined(parts)

    def difference(self, method: str, metric: str, first: str | None = None) -> Estimate:
        """The mean of the differences of a method to another, sample by sample; by default to the first.

        Scores that the other does not have are no differences: ``count`` is 0.
        """
        first = first or next(iter(self.values))
        return Estimate.of(self._column(method, metric) - self._column(first, metric))

    def summary(self, measures: Sequence[Measure], noun: str = "samples") -> Summary:
        """What the methods reach, and their differences to the first.

        Args:
            measures: the scores that count, in the order of the columns.
            noun: of the samples, such as images or episodes.
        """
        return Summary(self, tuple(measures), noun)

    def samples(self) -> tuple[list[str], list[list[object]]]:
        """Columns and rows of a CSV, a sample a row; cells without a value are empty."""
        columns = ["index"]
        rows: list[list[object]] = [[number] for number in self.index.tolist()]
        for method, metrics in self.values.items():
            for metric, values in metrics.items():
                columns.append(f"{metric}_{log_name(method)}")
                for row, value in zip(rows, values.tolist(), strict=True):
                    row.append(_cell(value))
        return columns, rows

    def _column(self, method: str, metric: str) -> Tensor:
        column = self.values.get(method, {}).get(metric)
        return torch.full((len(self),), math.nan, dtype=torch.float64) if column is None else column


@dataclass(frozen=True)
class Summary:
    """What methods reach: every mean with its interval, and the paired difference to the first method with its own.

    Made by :meth:`Scores.summary`.

    Attributes:
        scores: of every sample.
        measures: what counts.
        noun: of the samples.
        means: ``means[method][metric]``; of a `Measure` with ``median``, the median without an interval.
        differences: of the methods that are not the first.
    """

    scores: Scores
    measures: tuple[Measure, ...]
    noun: str = "samples"
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
        """A readable table, a method a row, of which no line is longer than ``width``; below it, which scores lack.

        The first measure has the differences beside it; the CSV has all.
        """
        columns = []
        for position, one in enumerate(self.measures):
            means = [self.means[method].get(one.metric) for method in self.methods]
            columns.append([one.heading, *_texts(one, means)])
            if position == 0 and self.differences:
                pairs = [self.differences.get(method, {}).get(one.metric) for method in self.methods]
                columns.append([f"minus {self.first}", *_texts(one, pairs, "+")])
        notes = [line for note in self._missing() for line in textwrap.wrap(note, width)]
        return "\n".join([folded(["", *self.methods], columns, width), *notes])

    def rows(self) -> tuple[list[str], list[list[object]]]:
        """Columns and rows of a CSV, a method a row; cells without a value are empty.

        ``method``, for every measure ``<metric>``, ``<metric>_half_width``, ``<metric>_minus_<first>``,
        ``<metric>_minus_<first>_half_width``, and the number of the samples under their noun; ``<metric>_missing``
        where a sample lacks one. Of a `Measure` with ``median`` there is ``<metric>`` alone.
        """
        columns, rows = ["method"], [list[object]([method]) for method in self.methods]
        for one in self.measures:
            columns += (
                [one.metric]
                if one.median
                else [
                    f"{name}{suffix}"
                    for name in (one.metric, f"{one.metric}_minus_{log_name(self.first)}")
                    for suffix in ("", "_half_width")
                ]
            )
            lacking = any(means[one.metric].missing for means in self.means.values() if one.metric in means)
            columns += [f"{one.metric}_missing"] if lacking else []
            for method, row in zip(self.methods, rows, strict=True):
                mean = self.means[method].get(one.metric)
                pair = self.differences.get(method, {}).get(one.metric)
                cells = [value for each in (mean, pair) for value in _cells(each)]
                row += cells[: 1 if one.median else 4]
                row += [mean.missing if mean else ""] if lacking else []
        return [*columns, self.noun], [[*row, len(self.scores)] for row in rows]

    def write(self, path: Path) -> None:
        """Write :meth:`rows` as CSV; an existing file is replaced only by a complete one."""
        write_csv(*self.rows(), path)

    def _missing(self) -> list[str]:
        """What is said of the samples that count in no mean, once where it is the same for several methods."""
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


def log_name(method: str) -> str:
    """The name of a method in what is logged and in columns: ``Slow-MAML`` is ``slow_maml``."""
    return re.sub(r"\W+", "_", method.lower())


def check_names(methods: Iterable[str]) -> None:
    """Raise ProblemError where two methods have the same :func:`log_name`."""
    methods = list(methods)
    names = [log_name(method) for method in methods]
    for method, name in zip(methods, names, strict=True):
        if names.count(name) > 1:
            raise ProblemError(f"two methods are called {method!r}: give them names of their own")


def _scores(name: str, values: Tensor | Sequence[float], index: Tensor) -> Tensor:
    if isinstance(values, Tensor):
        values = values.detach()
    values = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    if values.shape != index.shape:
        raise ProblemError(f"{name} must be one score a sample, ({len(index)},), and has shape {tuple(values.shape)}")
    return values


def _summed_up(values: Tensor, measure: Measure) -> Estimate:
    whole = Estimate.of(values)
    if not measure.median or not whole.count:
        return whole
    return Estimate(float(values.nanquantile(0.5)), math.nan, whole.count, whole.missing)


def _texts(measure: Measure, estimates: Sequence[Estimate | None], sign: str = "") -> list[str]:
    """The means and the half widths, such as ``85.00 ±27.76``, each under the other."""
    means = ["" if one is None else measure.shown(one.mean, sign) for one in estimates]
    widths = ["" if one is None else measure.shown(one.half_width) for one in estimates]
    intervals = [f" ±{width}" if width else "" for width in widths]
    most = max(map(len, intervals))
    return [mean + interval.ljust(most) for mean, interval in zip(means, intervals, strict=True)]


def _cells(estimate: Estimate | None) -> list[object]:
    """The mean and the half width; empty where there is none."""
    return ["", ""] if estimate is None else [_cell(estimate.mean), _cell(estimate.half_width)]


def _cell(value: float) -> object:
    return "" if math.isnan(value) else value
