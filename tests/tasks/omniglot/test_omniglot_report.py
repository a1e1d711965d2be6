"""What is said of test episodes: means and their intervals, differences, duplicates, the inner objective, the files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from deqopt_tasks.omniglot.episodes import EpisodeBatch
from deqopt_tasks.omniglot.report import EpisodeReport
from lightning.pytorch import Callback
from torch import Tensor
from torch.nn import functional as F

from deqopt import Equilibrium
from deqopt.compare import Scores
from deqopt.solvers import JointAnderson, StepRule
from reported import figures_of_test, lines_said, rows_of
from tiny_episodes import END, START, Rows, TinyEpisodes

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
WAYS, QUERIES = 3, 4
BaselineMethod = Callable[[EpisodeBatch], Tensor]


def row(index: int, ours: int, theirs: int) -> EpisodeBatch:
    """An episode of 3 ways and 2 shots, of whose 4 queries each method has so many right."""
    label = torch.arange(QUERIES) % WAYS
    guesses = [torch.where(torch.arange(QUERIES) < right, label, (label + 1) % WAYS) for right in (ours, theirs)]
    query = torch.stack(guesses, dim=1).float()[:, None, None]  # (Q, 1, 1, 2)
    support = torch.zeros(2 * WAYS, 1, 1, 2)
    return EpisodeBatch(support, torch.arange(WAYS).repeat(2), query, label, torch.tensor(index))


def guessed(which: int, batch: EpisodeBatch) -> Tensor:
    return F.one_hot(batch.query[:, :, 0, 0, which].long(), WAYS).float() * 0.5 + 0.1


class Guesses(TinyEpisodes):
    """Reports guesses: ours take no time, the others a quarter of a second an episode. The start of one episode is said
    to be lower than any end, where ``worse`` is its index."""

    def __init__(
        self,
        *right: tuple[int, int],
        batch_size: int = 3,
        worse: int | None = None,
        baselines: Callable[[], Mapping[str, BaselineMethod]] | None = None,
    ) -> None:
        rows = [row(index, *pair) for index, pair in enumerate(right)]
        super().__init__(Rows(rows), batch_size)
        self.worse, self.seconds = worse, 0.0
        self.report = EpisodeReport(self.ours, self.before, baselines or self.baselines)

    def ours(self, equilibrium: Equilibrium, batch: EpisodeBatch) -> Tensor:
        assert len(equilibrium.x) == len(batch.index)
        return guessed(0, batch)

    def before(self, batch: EpisodeBatch) -> Tensor:
        return torch.where(batch.index == (-1 if self.worse is None else self.worse), END / 2, START)

    def baselines(self) -> Mapping[str, BaselineMethod]:
        return {"Slow-MAML": self.slow}

    def slow(self, batch: EpisodeBatch) -> Tensor:
        self.seconds += 0.25 * len(batch.index)
        return guessed(1, batch)

    def callbacks(self) -> list[Callback]:
        return [self.report]

    def tested(self, directory: Path, **settings: Any) -> dict[str, float]:
        """The figures of a test."""
        solver = JointAnderson(max_nfe=60, step_size=0.1, step_rule=StepRule.PLAIN)
        with patch("deqopt.callbacks.comparison.now", lambda device: self.seconds):
            return figures_of_test(self, solver, directory, **settings)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is printed."""
    return lines_said(monkeypatch)


RIGHT = (4, 2), (3, 3), (4, 4), (2, 0), (4, 3)
"""The mean of ours is 17 of 20; the differences are -2, 0, 0, -2 and -1 queries, with variance 1."""
FACTS = "objective_before", "objective_after", "evaluations"


def test_accuracies_and_differences_are_means_over_episodes(tmp_path: Path, said: list[str]) -> None:
    task = Guesses(*RIGHT)
    figures = task.tested(tmp_path, logger=True)
    assert [figures[f"accuracy_{name}"] for name in ("ours", "slow_maml")] == pytest.approx([17 / 20, 12 / 20])
    ours, theirs = rows_of(tmp_path, "accuracy")
    student = 2.7764451051977987 / math.sqrt(5)  # of 4 degrees of freedom
    assert float(ours["accuracy_half_width"]) == pytest.approx(student * math.sqrt(0.8) / 4)
    assert float(theirs["accuracy_half_width"]) == pytest.approx(student * math.sqrt(2.3) / 4)
    assert float(theirs["accuracy_minus_ours"]) == pytest.approx(-5 / 20)
    assert float(theirs["accuracy_minus_ours_half_width"]) == pytest.approx(student * 1 / 4)
    assert ours["accuracy_minus_ours"] == "" and ours["episodes"] == theirs["episodes"] == "5"
    assert (float(ours["seconds"]), float(theirs["seconds"])) == (0, 0.25)
    lines = said[0].splitlines()
    assert lines[0] == "5 test episodes, 3-way 2-shot"
    assert lines[3].split()[:3] == ["ours", "85.00", "±27.76"]
    assert lines[4].split()[:5] == ["Slow-MAML", "60.00", "±47.08", "-25.00", "±31.04"]
    episodes = rows_of(tmp_path, "episodes")
    assert [(one["index"], one["accuracy_ours"], one["accuracy_slow_maml"]) for one in episodes] == [
        (str(index), str(a / 4), str(b / 4)) for index, (a, b) in enumerate(RIGHT)
    ]
    assert {(float(one["seconds_ours"]), float(one["seconds_slow_maml"])) for one in episodes} == {(0, 0.25)}


def test_the_inner_objective_is_that_of_the_start_and_of_the_exact_end(tmp_path: Path, said: list[str]) -> None:
    figures = Guesses(*RIGHT).tested(tmp_path, logger=True)
    assert figures["objective_before"] == START and figures["below_start"] == 1
    assert f"Mean inner objective {START:.4f} -> {END:.4f}, below its start in all 5 episodes\n" in said[0]
    rows = rows_of(tmp_path, "episodes")
    assert {float(one["objective_before"]) for one in rows} == {START}
    assert [float(one["objective_after"]) for one in rows] == pytest.approx([END] * 5, abs=1e-5)
    evaluations = [int(one["evaluations"]) for one in rows]
    assert all(1 < nfe <= 60 for nfe in evaluations)
    assert f"{sum(evaluations) / 5:.1f} evaluations an episode" in said[0]


def test_one_episode_that_ends_above_its_start_is_counted(tmp_path: Path, said: list[str]) -> None:
    figures = Guesses(*RIGHT, worse=3).tested(tmp_path)
    assert figures["below_start"] == pytest.approx(0.8)
    assert "below its start in 4 of 5 episodes" in said[0] and "in all" not in said[0]


@pytest.mark.parametrize("worse", [START, math.nan, 2 * START], ids=["the same", "NaN", "above"])
def test_what_is_not_below_is_not_said_to_be(worse: float) -> None:
    report = Guesses(*RIGHT).report
    facts = {"objective_before": [START] * 2, "objective_after": [END, worse], "evaluations": [7, 7]}
    report.scores = Scores([0, 1], {"ours": {"accuracy": [0.5, 0.5]}}, facts)
    assert report.below_start == 1 and "in 1 of 2 episodes" in report.notes()[0]


@pytest.mark.parametrize("count", [1, 599, 600])
def test_few_episodes_are_warned_of(count: int) -> None:
    report = Guesses(*RIGHT).report
    report.scores = Scores(range(count), {}, {name: [0.5] * count for name in FACTS})
    assert (report.notes()[-1] == f"Warning: {count} episodes are few, at least 600 are usual") == (count < 600)


def test_the_other_methods_are_asked_for_when_the_test_starts(tmp_path: Path) -> None:
    asked = []
    task = Guesses(*RIGHT, baselines=lambda: asked.append(1) or {})  # type: ignore[func-returns-value]
    assert not asked
    task.tested(tmp_path)
    assert asked == [1]
