"""Scores of methods on the same samples, each sample once, and estimates for other samples."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deqopt.errors import ProblemError


@dataclass(frozen=True)
class Estimate:
    """A mean over samples, and the half width ``t s / sqrt(n)`` of its 95 % confidence interval.

    s is the standard deviation over the n samples, and t is the 97.5 % quantile of Student's distribution with n - 1
    degrees of freedom, which is 1.96 for large n.

    Attributes:
        mean: the mean; NaN if there is no sample.
        half_width: the half width; NaN for a single sample, and if all samples have the same value, which says nothing
            about other samples.
        count: n, the number of samples whose value is not NaN.
        missing: the number of samples whose value is NaN.

    Example:
        >>> found = Estimate.of([1.0, 2.0, 3.0, math.nan])
        >>> found.mean, round(found.half_width, 3), found.count, found.missing
        (2.0, 2.484, 3, 1)
    """

    mean: float
    half_width: float
    count: int
    missing: int = 0

    @classmethod
    def of(cls, values: Tensor | Sequence[float]) -> Estimate:
        """The estimate from values (N,), one per sample."""
        from scipy.special import stdtrit

        values = torch.as_tensor(values, dtype=torch.float64)
        known = values[~values.isnan()]
        n = len(known)
        mean = float(known.mean()) if n else math.nan
        varied = n > 1 and bool(known.min() < known.max())
        half_width = float(stdtrit(n - 1, 0.975)) * float(known.std()) / math.sqrt(n) if varied else math.nan
        return cls(mean, half_width, n, len(values) - n)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of several methods on the same samples.

    Args:
        index: (N,) the number of each sample in its data.
        values: ``values[method][metric]``, (N,), NaN where a sample has no such score; methods may have different
            metrics. Numbers and bools are kept as float64 on the CPU.
        facts: other values of the samples by name, (N,), such as the cost of their solves; integers stay integers.

    Raises:
        ProblemError: the number of scores differs from the number of samples, or two methods have the same
            :func:`log_name`.

    Example:
        >>> values = {"ours": {"psnr": [20.0, 22.0, 27.0]}, "mean image": {"psnr": [9.0, 10.0, 11.0]}}
        >>> scores = Scores([0, 1, 2], values)
        >>> scores.difference("mean image", "psnr").mean
        -13.0
    """

    index: Tensor
    values: Mapping[str, Mapping[str, Tensor]]
    facts: Mapping[str, Tensor]

    def __init__(
        self,
        index: Tensor | Sequence[int],
        values: Mapping[str, Mapping[str, Tensor | Sequence[float]]],
        facts: Mapping[str, Tensor | Sequence[float]] | None = None,
    ) -> None:
        index = torch.as_tensor(index, dtype=torch.long, device="cpu")
        check_names(values)
        kept = {
            method: {metric: _column(f"{metric} of {method!r}", one, index) for metric, one in metrics.items()}
            for method, metrics in values.items()
        }
        object.__setattr__(self, "index", index)
        object.__setattr__(self, "values", kept)
        known = {name: _column(name, one, index, dtype=None) for name, one in (facts or {}).items()}
        object.__setattr__(self, "facts", known)

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def joined(cls, parts: Iterable[Scores]) -> Scores:
        """All samples in the order of their numbers. Of several samples with the same number, the first counts.

        A score that only some parts have is NaN for the samples of the other parts.
        """
        parts = [part for part in parts if len(part)]
        if not parts:
            return cls([], {})
        index, order = torch.cat([part.index for part in parts]).sort(stable=True)
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        rows = order[first]
        values = {
            method: {
                metric: torch.cat([part.of(method, metric) for part in parts])[rows]
                for metric in _names(part.values.get(method, {}) for part in parts)
            }
            for method in _names(part.values for part in parts)
        }
        facts = {
            name: torch.cat([part.fact(name) for part in parts])[rows] for name in _names(part.facts for part in parts)
        }
        return cls(index[first], values, facts)

    def gathered(self) -> Scores:
        """The joined scores of all processes of ``torch.distributed``; all processes must call this method."""
        parts = [self]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everyone: list[Scores | None] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everyone, self)
            parts = [part for part in everyone if part is not None]
        return Scores.joined(parts)

    def of(self, method: str, metric: str) -> Tensor:
        """(N,) the scores of a method; NaN if it does not have this metric."""
        return self._or_missing(self.values.get(method, {}).get(metric))

    def fact(self, name: str) -> Tensor:
        """(N,) a fact of the samples; NaN where it is unknown."""
        return self._or_missing(self.facts.get(name))

    def only(self, methods: Iterable[str]) -> Scores:
        """The same samples with only these methods, in this order."""
        return Scores(self.index, {method: self.values[method] for method in methods}, self.facts)

    def difference(self, method: str, metric: str, first: str | None = None) -> Estimate:
        """The mean of the differences, sample by sample, between a method and another method (by default the first).

        If the other method does not have this metric, there are no differences, and ``count`` is 0.
        """
        first = first or next(iter(self.values))
        return Estimate.of(self.of(method, metric) - self.of(first, metric))

    def rows(self) -> tuple[list[str], list[list[object]]]:
        """Columns and rows of a CSV, one row per sample: ``index``, the facts, and ``<metric>_<log_name(method)>``.

        Cells without a value are empty.
        """
        columns = dict(self.facts)
        for method, metrics in self.values.items():
            columns |= {f"{metric}_{log_name(method)}": scores for metric, scores in metrics.items()}
        cells = [[cell(value) for value in column.tolist()] for column in columns.values()]
        return ["index", *columns], [list(row) for row in zip(self.index.tolist(), *cells, strict=True)]

    def _or_missing(self, column: Tensor | None) -> Tensor:
        return torch.full((len(self),), math.nan, dtype=torch.float64) if column is None else column


def log_name(method: str) -> str:
    """The name of a method in logged values and in columns: ``Slow-MAML`` becomes ``slow_maml``."""
    return re.sub(r"\W+", "_", method.lower())


def check_names(methods: Iterable[str]) -> None:
    """Raise ProblemError where two methods have the same :func:`log_name`."""
    methods = list(methods)
    names = [log_name(method) for method in methods]
    for method, name in zip(methods, names, strict=True):
        if names.count(name) > 1:
            raise ProblemError(f"two methods are called {method!r}: give them names of their own")


def _column(
    name: str, values: Tensor | Sequence[float], index: Tensor, dtype: torch.dtype | None = torch.float64
) -> Tensor:
    if isinstance(values, Tensor):
        values = values.detach()
    values = torch.as_tensor(values, dtype=dtype, device="cpu")
    if values.shape != index.shape:
        raise ProblemError(f"{name} must be one number a sample, ({len(index)},), and has shape {tuple(values.shape)}")
    return values


def _names(tables: Iterable[Mapping[str, object]]) -> list[str]:
    """The keys of all tables, each once, in the order of their first appearance."""
    return list(dict.fromkeys(name for table in tables for name in table))


def cell(value: float) -> object:
    """The value as a cell of a CSV: empty for NaN."""
    return "" if math.isnan(value) else value
