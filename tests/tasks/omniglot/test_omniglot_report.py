"""What is said of test episodes: means and their intervals, differences, duplicates, the inner objective, the files."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from deqopt_tasks.omniglot.episodes import EpisodeBatch
from deqopt_tasks.omniglot.report import Episode, EpisodeReport, Estimate, Summary
from lightning.pytorch import Callback
from torch import Tensor
from torch.nn import functional as F

from deqopt import Equilibrium, JointModule
from deqopt.errors import ProblemError
from deqopt.solvers import JointAnderson, StepRule
from paths import SUPPORT
from tiny_episodes import END, START, Rows, TinyEpisodes
from tiny_task import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
WAYS, QUERIES = 3, 4
Method = Callable[[EpisodeBatch], Tensor]


# -- episodes whose images hold what two methods guess ----------------------------------------------------------------


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
    """Reports guesses; the start of one episode is said to be lower than any end, where ``worse`` is its index."""

    def __init__(
        self,
        *right: tuple[int, int],
        batch_size: int = 3,
        repeated: int = 0,
        worse: int | None = None,
        baselines: Callable[[], Mapping[str, Method]] | None = None,
    ) -> None:
        rows = [row(index, *pair) for index, pair in enumerate(right)]
        super().__init__(Rows([*rows, *rows[:repeated]]), batch_size)
        self.worse = worse
        self.report = EpisodeReport(self.ours, self.before, baselines or self.baselines)

    def ours(self, equilibrium: Equilibrium, batch: EpisodeBatch) -> Tensor:
        assert len(equilibrium.x) == len(batch.index)
        return guessed(0, batch)

    def before(self, batch: EpisodeBatch) -> Tensor:
        return torch.where(batch.index == (-1 if self.worse is None else self.worse), END / 2, START)

    def baselines(self) -> Mapping[str, Method]:
        return {"Slow-MAML": self.slow}

    @staticmethod
    def slow(batch: EpisodeBatch) -> Tensor:
        time.sleep(0.03 * len(batch.index))
        return guessed(1, batch)

    def callbacks(self) -> list[Callback]:
        return [self.report]

    def tested(self, directory: Path, **settings: Any) -> dict[str, float]:
        """The figures of a test."""
        module = JointModule(self, solver=JointAnderson(max_nfe=60, step_size=0.1, step_rule=StepRule.PLAIN))
        trainer = quiet_trainer(directory, **settings)
        (figures,) = trainer.test(module, datamodule=self.datamodule(), verbose=False)
        return {name.removeprefix("test/"): value for name, value in figures.items()}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is printed."""
    lines: list[str] = []
    monkeypatch.setattr("deqopt_tasks.omniglot.report.rank_zero_info", lines.append)
    return lines


def read(directory: Path, name: str) -> list[dict[str, str]]:
    (path,) = directory.rglob(f"figures/{name}.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


RIGHT = (4, 2), (3, 3), (4, 4), (2, 0), (4, 3)
"""The mean of ours is 17 of 20; the differences are -2, 0, 0, -2 and -1 queries, with variance 1."""


def test_accuracies_and_differences_are_means_over_episodes(tmp_path: Path, said: list[str]) -> None:
    task = Guesses(*RIGHT)
    figures = task.tested(tmp_path, logger=True)
    assert figures["accuracy_ours"] == pytest.approx(17 / 20) and figures["accuracy_slow_maml"] == pytest.approx(
        12 / 20
    )
    ours, theirs = read(tmp_path, "accuracy")
    student = 2.7764451051977987 / math.sqrt(5)  # of 4 degrees of freedom
    assert float(ours["half_width"]) == pytest.approx(student * math.sqrt(0.8) / 4)
    assert float(theirs["half_width"]) == pytest.approx(student * math.sqrt(2.3) / 4)
    assert float(theirs["minus_ours"]) == pytest.approx(-5 / 20)
    assert float(theirs["minus_ours_half_width"]) == pytest.approx(student * 1 / 4)
    assert ours["minus_ours"] == ours["minus_ours_half_width"] == "" and ours["episodes"] == theirs["episodes"] == "5"
    assert 0.03 <= float(theirs["seconds"]) < 0.06  # a batch takes 0.06 or more
    lines = said[0].splitlines()
    assert lines[0].startswith("5 test episodes, 3-way 2-shot: accuracy in % with 95 % confidence intervals")
    assert lines[2].split()[:4] == ["ours", "85.00", "+-", "27.76"]
    assert lines[3].split()[:7] == ["Slow-MAML", "60.00", "+-", "47.08", "-25.00", "+-", "31.04"]
    episodes = read(tmp_path, "episodes")
    assert [(one["index"], one["accuracy_ours"], one["accuracy_slow_maml"]) for one in episodes] == [
        (str(index), str(a / 4), str(b / 4)) for index, (a, b) in enumerate(RIGHT)
    ]
    assert all(0 < float(one["seconds_ours"]) < 5 and float(one["seconds_slow_maml"]) >= 0.03 for one in episodes)


def test_the_inner_objective_is_that_of_the_start_and_of_the_exact_end(tmp_path: Path, said: list[str]) -> None:
    figures = Guesses(*RIGHT).tested(tmp_path, logger=True)
    assert figures["objective_before"] == START and figures["below_start"] == 1
    assert f"Inner objective {START:.4f} -> {END:.4f} in the mean; it ends below its start in all 5 episodes" in said[0]
    rows = read(tmp_path, "episodes")
    assert {float(one["objective_before"]) for one in rows} == {START}
    assert [float(one["objective_after"]) for one in rows] == pytest.approx([END] * 5, abs=1e-5)
    evaluations = [int(one["evaluations"]) for one in rows]
    assert all(1 < nfe <= 60 for nfe in evaluations)
    assert f"\n{sum(evaluations) / 5:.1f} evaluations an episode" in said[0]


def test_one_episode_that_ends_above_its_start_is_counted(tmp_path: Path, said: list[str]) -> None:
    figures = Guesses(*RIGHT, worse=3).tested(tmp_path)
    assert figures["below_start"] == pytest.approx(0.8)
    assert "below its start in 4 of 5 episodes" in said[0] and "in all" not in said[0]


def episode(index: int, before: float, after: float) -> Episode:
    return Episode(index, "5-way 1-shot", {"ours": 0.5}, {"ours": 0.01}, before, after, 7)


@pytest.mark.parametrize("after", [1.0, math.nan, 1.5], ids=["the same", "NaN", "above"])
def test_what_is_not_below_is_not_said_to_be(after: float) -> None:
    summary = Summary.of([episode(0, 1.0, 0.5), episode(1, 1.0, after)])
    assert summary.below_start == 1 and "in 1 of 2 episodes" in summary.report()


@pytest.mark.parametrize("count", [1, 599, 600])
def test_few_episodes_are_warned_of(count: int) -> None:
    last = Summary.of([episode(index, 1.0, 0.5) for index in range(count)]).report().splitlines()[-1]
    assert (last == f"Warning: {count} episodes are few, at least 600 are usual") == (count < 600)


def test_episodes_that_were_met_twice_count_once(tmp_path: Path, said: list[str]) -> None:
    plain = Guesses(*RIGHT).tested(tmp_path)
    padded = Guesses(*RIGHT, repeated=3, batch_size=4).tested(tmp_path)
    assert padded["accuracy_ours"] == plain["accuracy_ours"] and padded["below_start"] == 1
    assert said[0].splitlines()[0] == said[1].splitlines()[0]
    assert [line.split("+-")[1].split()[0] for line in said[0].splitlines()[2:4]] == ["27.76", "47.08"]
    assert [line.split("+-")[1].split()[0] for line in said[1].splitlines()[2:4]] == ["27.76", "47.08"]


@pytest.mark.filterwarnings("ignore:1 of 3 samples of a batch hold NaN")
def test_a_second_test_counts_anew_and_spoiled_episodes_are_left_out(tmp_path: Path, said: list[str]) -> None:
    task = Guesses(*RIGHT)
    task.rows[1].support[0] = torch.nan
    first = task.tested(tmp_path)
    task.rows = Rows([row(index, 1, 1) for index in range(4)])
    second = task.tested(tmp_path)
    assert first["accuracy_ours"] == pytest.approx(14 / 16) and second["accuracy_ours"] == 0.25
    assert all(text.startswith("4 test episodes") for text in said)


def test_a_single_episode_has_no_interval(tmp_path: Path, said: list[str]) -> None:
    figures = Guesses((3, 2)).tested(tmp_path, logger=True)
    assert figures["accuracy_ours"] == 0.75
    assert "+-" not in said[0] and "nan" not in said[0]
    assert [one["half_width"] for one in read(tmp_path, "accuracy")] == ["", ""]


def test_a_trial_run_writes_nothing(tmp_path: Path, said: list[str]) -> None:
    assert Guesses(*RIGHT).tested(tmp_path, fast_dev_run=True)["accuracy_ours"] == pytest.approx(11 / 12)
    assert said[0].startswith("3 test episodes") and not list(tmp_path.rglob("*.csv"))


def test_without_other_methods_there_is_ours_alone(tmp_path: Path, said: list[str]) -> None:
    figures = Guesses(*RIGHT, baselines=dict).tested(tmp_path, logger=True)
    assert [name for name in figures if name.startswith("accuracy")] == ["accuracy_ours"]
    assert [one["method"] for one in read(tmp_path, "accuracy")] == ["ours"]


def test_the_other_methods_are_asked_for_when_the_test_starts(tmp_path: Path) -> None:
    asked = []
    task = Guesses(*RIGHT, baselines=lambda: asked.append(1) or {})  # type: ignore[func-returns-value]
    assert not asked
    task.tested(tmp_path)
    assert asked == [1]


@pytest.mark.parametrize("names", [["Ours"], ["MAML 1", "maml-1"]])
def test_methods_of_one_name_are_refused(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=r"two methods are called .*: give them names of their own"):
        Guesses(*RIGHT, baselines=lambda: dict.fromkeys(names, Guesses.slow)).tested(tmp_path)


# -- intervals --------------------------------------------------------------------------------------------------------


def test_the_interval_of_many_episodes_is_the_normal_one() -> None:
    """Half zeros and half ones: ``s = sqrt(n / (n - 1)) / 2``."""
    n = 10_000
    found = Estimate.of([0.0, 1.0] * (n // 2))
    assert found.mean == 0.5
    assert found.half_width == pytest.approx(1.96 * math.sqrt(n / (n - 1)) / 2 / math.sqrt(n), rel=2e-4)


@pytest.mark.parametrize("n", [3, 100])
def test_the_interval_holds_the_truth_in_95_percent(n: int) -> None:
    """Of normal values. With 1.96 for three it would be 81 %."""
    draws = torch.randn(2000, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [Estimate.of(values.tolist()) for values in draws]
    assert sum(abs(one.mean) <= one.half_width for one in found) / 2000 == pytest.approx(0.95, abs=0.015)


def test_paired_differences_are_known_better_than_accuracies_that_go_together() -> None:
    """Episodes are hard or easy for both methods; theirs is right 5 % less often in every second one."""
    hard = torch.rand(100, generator=torch.Generator().manual_seed(0)).tolist()
    episodes = [
        Episode(i, "", {"ours": a, "theirs": a - 0.05 * (i % 2)}, {"ours": 0.0, "theirs": 0.0}, 1.0, 0.5, 1)
        for i, a in enumerate(hard)
    ]
    ours, theirs = Summary.of(episodes).methods
    assert theirs.difference is not None
    assert theirs.difference.mean == pytest.approx(-0.025)
    assert theirs.difference.half_width == pytest.approx(1.9842 * 0.025 * math.sqrt(100 / 99) / 10, rel=1e-4)
    assert theirs.difference.half_width < 0.1 * math.hypot(ours.accuracy.half_width, theirs.accuracy.half_width)


# -- several processes ------------------------------------------------------------------------------------------------


def worker(directory: Path) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    figures = Guesses(*RIGHT, batch_size=2).tested(directory, devices=2, strategy="ddp", logger=True)
    torch.save(figures, directory / f"rank_{os.environ.get('LOCAL_RANK', '0')}.pt")


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path: Path, said: list[str]) -> None:
    """The second of them meets the first episode again, because five cannot be shared."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT)}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("5 test episodes, 3-way 2-shot") == 1
    assert [one["index"] for one in read(tmp_path, "episodes")] == ["0", "1", "2", "3", "4"]
    alone = Guesses(*RIGHT).tested(tmp_path)
    names = ["accuracy_ours", "accuracy_slow_maml", "below_start", "objective_before"]
    for rank in range(2):
        figures = torch.load(tmp_path / f"rank_{rank}.pt")
        assert {name: figures[name] for name in names} == pytest.approx({name: alone[name] for name in names})


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
