"""Trainings that are measured by time: what counts, and when there is a snapshot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.timed import Backward, Race, Snapshot, read_runs, write_run
from deqopt.equilibrium import BackwardReport
from deqopt.iteration import Status


class Clock:
    """Stands still unless it is told."""

    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def raced(seconds: list[float], budget: float, curve: tuple[float, ...]) -> tuple[list[Snapshot], list[float]]:
    """The snapshots of a race of such steps, an hour apart, and the share at every one."""
    clock, network = Clock(), nn.Linear(1, 1, bias=False)
    race = Race(budget, curve, clock)
    snapshots: list[Snapshot] = []
    shares = []
    for one in seconds:
        assert race.runs
        clock.now += 3600
        shares.append(race.share)
        with race.step():
            clock.now += one
            nn.init.constant_(network.weight, race.steps + 1)
        snapshots += race.passed(network)
    assert not race.runs and not list(race.passed(network))
    return snapshots, shares


@pytest.mark.parametrize(
    ("seconds", "at"),
    [
        ([1, 1, 1, 1], [(1, 1), (2, 2), (4, 4)]),
        ([0.5, 0.25, 0.5, 2.5, 0.75], [(1.25, 3), (3.75, 4), (4.5, 5)]),
        ([3, 5], [(3, 1), (3, 1), (8, 2)]),
        ([9], [(9, 1)] * 3),
    ],
)
def test_steps_alone_count_and_every_share_has_its_snapshot(seconds: list[float], at: list[tuple[float, int]]) -> None:
    snapshots, shares = raced(seconds, 4.0, (1 / 4, 1 / 2, 1.0))
    assert [(one.seconds, one.steps) for one in snapshots] == at
    assert shares == pytest.approx([sum(seconds[:k]) / 4 for k in range(len(seconds))])
    assert [float(one.weights["weight"]) for one in snapshots] == [one.steps for one in snapshots], "they are copies"


def test_a_step_that_fails_does_not_count() -> None:
    race = Race(1.0, clock=Clock())
    with pytest.raises(RuntimeError, match="lost"), race.step():
        raise RuntimeError("lost")
    assert race.steps == 0 and race.share == 0


def test_systems_are_averaged_over_steps() -> None:
    """Samples that are not solved are counted, residuals that are NaN left out."""
    done, spent = int(Status.CONVERGED), int(Status.OUT_OF_BUDGET)
    first = BackwardReport(torch.tensor([0.1, 0.3]), torch.tensor([done, spent]), torch.tensor([4, 8]))
    second = BackwardReport(torch.tensor([0.4, torch.nan]), torch.tensor([spent, spent]), torch.tensor([10, 10]))
    found = Backward.of_steps([first, second])
    assert found is not None
    assert (found.residual, found.products, found.unsolved) == pytest.approx((0.3, 8, 0.75))
    assert Backward.of_steps([]) is None


def test_runs_are_read_as_they_were_written(tmp_path: Path) -> None:
    runs = {"b": {"seed": 1, "marks": [0.1]}, "a": {"seed": 0, "marks": [None]}}
    for name, said in runs.items():
        write_run(tmp_path / "new" / f"{name}.json", said)
    (tmp_path / "new" / "results.md").write_text("no run")
    assert read_runs(tmp_path / "new") == [runs["a"], runs["b"]]
    assert read_runs(tmp_path / "new", "b*") == [runs["b"]] and not read_runs(tmp_path / "none")
