"""The callback that reports the accuracy on test episodes, compared with other methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from deqopt.callbacks.comparison import ComparisonReport
from deqopt.compare import Measure
from deqopt.equilibrium import Equilibrium

from .episodes import EpisodeBatch

ACCURACY = Measure("accuracy", "accuracy in %", factor=100, bounds=(0, 1))
MILLISECONDS = Measure("seconds", "ms/episode", factor=1000, digits=1, median=True)
ENOUGH = 600
"""Smallest number of test episodes that is usual in the literature."""


class EpisodeReport(ComparisonReport):
    """In test: the share of correctly classified queries of every episode, by our method and by other methods; see
    `ComparisonReport`.

    The metric is ``accuracy``; ``test/objective_before`` and ``test/below_start`` are logged too: the mean of the inner
    objective at the start, and the share of the episodes whose inner objective ends below its start. The files are
    ``figures/accuracy.*``, and ``figures/episodes.csv`` with every episode and its inner objective.

    Args:
        probabilities: function that returns our probabilities, (B, Q, ways), for a solved batch; the first call for a
            batch may solve the queries.
        before: function that returns the inner objective of a batch at x0, (B,), with z solved exactly for x0.
        baselines: function that returns the other methods by name when the test starts; each maps a batch to
            (B, Q, ways).
    """

    def __init__(
        self,
        probabilities: Callable[[Equilibrium, EpisodeBatch], Tensor],
        before: Callable[[EpisodeBatch], Tensor],
        baselines: Callable[[], Mapping[str, Callable[[EpisodeBatch], Tensor]]] = dict,
    ) -> None:
        super().__init__("accuracy", [ACCURACY, MILLISECONDS], accuracy, probabilities, noun="episodes")
        self._before, self._baselines = before, baselines

    def methods(self, trainer: Trainer) -> Mapping[str, Callable[[EpisodeBatch], Tensor]]:
        return self._baselines()

    def more(self, values: Any, equilibrium: Equilibrium, batch: EpisodeBatch) -> Any:
        ways = int(batch.support_label.max()) + 1
        facts = {
            "objective_before": self._before(batch),
            "objective_after": equilibrium.objective,
            "evaluations": equilibrium.nfe,
            "ways": torch.full_like(batch.index, ways),
            "shots": torch.full_like(batch.index, batch.support_label.shape[1] // ways),
        }
        return {}, facts

    @property
    def below_start(self) -> int:
        """The number of episodes whose inner objective ends below its start."""
        return int((self.scores.fact("objective_after") < self.scores.fact("objective_before")).sum())

    def logged(self) -> Mapping[str, float]:
        inner = {
            "objective_before": float(self.scores.fact("objective_before").mean()),
            "below_start": self.below_start / len(self.scores),
        }
        return {**super().logged(), **inner}

    def title(self) -> str:
        shapes = zip(self.scores.fact("ways").tolist(), self.scores.fact("shots").tolist(), strict=True)
        settings = " and ".join(f"{ways}-way {shots}-shot" for ways, shots in sorted(set(shapes)))
        return f"{len(self.scores)} test episodes, {settings}"

    def notes(self) -> list[str]:
        """Notes on the inner solve, and a warning if there are few episodes."""
        count, below = len(self.scores), self.below_start
        before, after, nfe = (
            float(self.scores.fact(name).double().mean())
            for name in ("objective_before", "objective_after", "evaluations")
        )
        where = f"in all {count} episodes" if below == count else f"in {below} of {count} episodes"
        notes = [
            f"Mean inner objective {before:.4f} -> {after:.4f}, below its start {where}",
            f"{nfe:.1f} evaluations an episode; the time of ours is that of the joint solve and of the exact "
            "equilibria of support and queries",
        ]
        few = f"Warning: {count} episodes are few, at least {ENOUGH} are usual"
        return [*notes, few] if count < ENOUGH else notes


def accuracy(probabilities: Tensor, batch: EpisodeBatch) -> dict[str, Tensor]:
    """The share of the queries that are correctly classified, for every episode."""
    return {"accuracy": (probabilities.argmax(2) == batch.query_label).double().mean(1)}
