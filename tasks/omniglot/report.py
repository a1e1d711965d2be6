"""The callback that reports what is reached on test episodes, beside other methods."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from deqopt.batch import size_of
from deqopt.callbacks.figures import figure_directory
from deqopt.equilibrium import Equilibrium
from deqopt.errors import ProblemError
from deqopt.tables import aligned, write_csv

from .episodes import EpisodeBatch

OURS = "ours"
ENOUGH = 600
"""Episodes that the literature reports at least."""


class EpisodeReport(Callback):
    """In test: how many queries of every episode are classified rightly, by us and by other methods.

    Logs ``test/accuracy_<method>``, the mean over the episodes, ``test/objective_before``, and ``test/below_start``,
    the share of the episodes whose inner objective ends below its start. Prints a table with 95 % confidence intervals,
    those of the differences to ours over the same episodes, and writes ``figures/accuracy.csv``, which has the same,
    and ``figures/episodes.csv``, which has every episode. With several processes each meets its share; an episode that
    was met twice, to fill a batch up, counts once.

    Args:
        probabilities: ours: (B, Q, ways) of a solved batch; the queries may be solved in the first call for it.
        before: (B,) the inner objective of a batch at x0, with z solved exactly for x0.
        baselines: gives the other methods by name, when the test starts: each maps a batch to (B, Q, ways). They are
            called without gradients, and enable them where they need any.

    Raises:
        ProblemError: when the test starts, two methods of one name.
    """

    def __init__(
        self,
        probabilities: Callable[[Equilibrium, EpisodeBatch], Tensor],
        before: Callable[[EpisodeBatch], Tensor],
        baselines: Callable[[], Mapping[str, Callable[[EpisodeBatch], Tensor]]] = dict,
    ) -> None:
        self._probabilities, self._before, self._open_baselines = probabilities, before, baselines
        self._baselines: Mapping[str, Callable[[EpisodeBatch], Tensor]] = {}
        self._episodes: list[Episode] = []
        self._summary: Summary | None = None
        self._began = 0.0

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._episodes, self._baselines = [], self._open_baselines()
        keys = [key_of(name) for name in (OURS, *self._baselines)]
        for name, key in zip(self._baselines, keys[1:], strict=True):
            if keys.count(key) > 1:
                raise ProblemError(f"two methods are called {name!r}: give them names of their own")

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._began = _now(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        batch = outputs["batch"]  # without samples that are not finite
        equilibrium: Equilibrium = outputs["equilibrium"]
        accuracy = {OURS: _accuracy(self._probabilities(equilibrium, batch), batch)}
        seconds = {OURS: (_now(pl_module.device) - self._began) / size_of(batch)}
        for name, baseline in self._baselines.items():
            began = _now(pl_module.device)
            accuracy[name] = _accuracy(baseline(batch), batch)
            seconds[name] = (_now(pl_module.device) - began) / size_of(batch)
        before, after = self._before(batch).tolist(), equilibrium.objective.tolist()
        setting, nfe = _setting(batch), equilibrium.nfe.tolist()
        for row, index in enumerate(batch.index.tolist()):
            mine = {name: shares[row] for name, shares in accuracy.items()}
            self._episodes.append(Episode(index, setting, mine, seconds, before[row], after[row], int(nfe[row])))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._summary = Summary.of(_gathered(self._episodes, trainer.world_size))
        for name, value in self._summary.figures().items():
            pl_module.log(f"test/{name}", value, sync_dist=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        directory, summary = figure_directory(trainer), self._summary
        assert summary is not None
        rank_zero_info(summary.report())
        if directory is not None:
            write_csv(*summary.table(), directory / "accuracy.csv")
            write_csv(*summary.episode_table(), directory / "episodes.csv")


@dataclass(frozen=True)
class Estimate:
    """A mean over episodes, and the half width ``t s / sqrt(n)`` of its 95 % confidence interval.

    s is the standard deviation over the n episodes, t the 97.5 % quantile of Student's distribution with n - 1 degrees
    of freedom: 1.96 where they are many. NaN of a single episode.
    """

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        from scipy.special import stdtrit

        n = len(values)
        half_width = float(stdtrit(n - 1, 0.975)) * stdev(values) / math.sqrt(n) if n > 1 else math.nan
        return cls(fmean(values), half_width)

    def percent(self) -> list[str]:
        """The mean and the interval in %, as cells of a table."""
        interval = "" if math.isnan(self.half_width) else f"+- {100 * self.half_width:.2f}"
        return [f"{100 * self.mean:.2f}", interval]


@dataclass(frozen=True)
class Episode:
    """A test episode.

    Attributes:
        index: its number in the split.
        setting: such as "5-way 1-shot".
        accuracy: the share of its queries that a method classifies rightly, by method.
        seconds: by method, the time of its batch divided by the episodes in it.
        before, after: the inner objective at the start and at the point that is found, both with exact z.
        nfe: evaluations of the solve.
    """

    index: int
    setting: str
    accuracy: Mapping[str, float]
    seconds: Mapping[str, float]
    before: float
    after: float
    nfe: int


@dataclass(frozen=True)
class Method:
    """What a method reaches.

    Attributes:
        name: its name.
        accuracy: over the episodes.
        difference: of its accuracy to ours, episode by episode; None of ours.
        seconds: an episode, the median over the episodes.
    """

    name: str
    accuracy: Estimate
    difference: Estimate | None
    seconds: float


@dataclass(frozen=True)
class Summary:
    """What is reached on all test episodes, in the order of their indices, each once.

    Attributes:
        episodes: at least one.
        methods: ours and then the others.
    """

    episodes: Sequence[Episode]
    methods: Sequence[Method]

    @classmethod
    def of(cls, episodes: Iterable[Episode]) -> Summary:
        """Of all that were met; of those with one index the first counts."""
        first: dict[int, Episode] = {}
        for one in episodes:
            first.setdefault(one.index, one)
        met = [first[index] for index in sorted(first)]
        ours = [one.accuracy[OURS] for one in met]
        methods = []
        for name in met[0].accuracy:
            reached = [one.accuracy[name] for one in met]
            beside = None if name == OURS else Estimate.of([a - b for a, b in zip(reached, ours, strict=True)])
            methods.append(Method(name, Estimate.of(reached), beside, median(one.seconds[name] for one in met)))
        return cls(met, methods)

    @property
    def below_start(self) -> int:
        """The episodes whose inner objective ends below its start."""
        return sum(one.after < one.before for one in self.episodes)

    def figures(self) -> dict[str, float]:
        """What is logged."""
        return {
            **{f"accuracy_{key_of(method.name)}": method.accuracy.mean for method in self.methods},
            "objective_before": fmean(one.before for one in self.episodes),
            "below_start": self.below_start / len(self.episodes),
        }

    def report(self) -> str:
        """A readable table, a method a line, and what there is to say of the inner solve."""
        count = len(self.episodes)
        rows = [["", "accuracy", "", "minus ours", "", "ms/episode"]]
        for method in self.methods:
            difference = method.difference.percent() if method.difference else ["", ""]
            rows.append([method.name, *method.accuracy.percent(), *difference, f"{1000 * method.seconds:.1f}"])
        before, after, nfe = (fmean(getattr(one, name) for one in self.episodes) for name in ("before", "after", "nfe"))
        where = (
            f"in all {count} episodes" if self.below_start == count else f"in {self.below_start} of {count} episodes"
        )
        settings = " and ".join(sorted({one.setting for one in self.episodes}))
        lines = [
            f"{count} test episodes, {settings}: accuracy in % with 95 % confidence intervals; differences are paired",
            aligned(rows),
            f"Inner objective {before:.4f} -> {after:.4f} in the mean; it ends below its start {where}",
            f"{nfe:.1f} evaluations an episode in the mean; the time of ours is that of the joint solve "
            "and the exact equilibria of support and queries",
        ]
        if count < ENOUGH:
            lines.append(f"Warning: {count} episodes are few, at least {ENOUGH} are usual")
        return "\n".join(lines)

    def table(self) -> tuple[list[str], list[list[object]]]:
        """Columns and rows, a method a row; cells without a value are empty. Accuracies are shares of 1."""
        columns = ["method", "accuracy", "half_width", "minus_ours", "minus_ours_half_width", "seconds", "episodes"]
        rows: list[list[object]] = []
        for one in self.methods:
            estimates = [value for pair in (one.accuracy, one.difference) for value in _cells(pair)]
            rows.append([one.name, *estimates, one.seconds, len(self.episodes)])
        return columns, rows

    def episode_table(self) -> tuple[list[str], list[list[object]]]:
        """Columns and rows, an episode a row."""
        keys = [key_of(method.name) for method in self.methods]
        columns = ["index", "objective_before", "objective_after", "evaluations"]
        columns += [f"{figure}_{key}" for key in keys for figure in ("accuracy", "seconds")]
        rows: list[list[object]] = []
        for one in self.episodes:
            reached = [figure[method.name] for method in self.methods for figure in (one.accuracy, one.seconds)]
            rows.append([one.index, one.before, one.after, one.nfe, *reached])
        return columns, rows


def key_of(method: str) -> str:
    """The name of a method in what is logged."""
    return re.sub(r"\W+", "_", method.lower())


def _accuracy(probabilities: Tensor, batch: EpisodeBatch) -> list[float]:
    """The share of the queries that are classified rightly, for every episode."""
    right: Tensor = probabilities.argmax(2) == batch.query_label
    return right.double().mean(1).tolist()


def _setting(batch: EpisodeBatch) -> str:
    ways = int(batch.support_label.max()) + 1
    return f"{ways}-way {batch.support_label.shape[1] // ways}-shot"


def _cells(estimate: Estimate | None) -> list[object]:
    """The mean and the half width; empty where there is none."""
    if estimate is None:
        return ["", ""]
    return [estimate.mean, "" if math.isnan(estimate.half_width) else estimate.half_width]


def _now(device: torch.device) -> float:
    """Seconds, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _gathered(episodes: list[Episode], processes: int) -> list[Episode]:
    """Those of all processes, in the order of these."""
    if processes == 1:
        return episodes
    everyone: list[list[Episode]] = [[]] * processes
    torch.distributed.all_gather_object(everyone, episodes)
    return [one for mine in everyone for one in mine]
