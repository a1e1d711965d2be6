"""The race of adversarial trainings: each trains the network that it says, and its accuracies are those of images."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from deqopt_tasks.cifar.losses import Clean

from benchmarks.training import adversarial, command
from benchmarks.training.race import race
from benchmarks.training.report import TrainingRun


def test_runs_leave_their_milestones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "race", lambda all, seconds: race(all, seconds, itertools.count().__next__))
    said = ["--methods", "joint", "unrolled", "--seeds", "3", "--seconds", "2", "--images", "2", "--out", str(tmp_path)]
    adversarial.main(said)
    runs = TrainingRun.read(tmp_path)
    assert {run.method for run in runs} == {adversarial.METHODS[name].label for name in ("joint", "unrolled")}
    for run in runs:
        assert run.scene == "at most 2 test images of digits, 2 s"
        assert [(at.seconds, at.steps) for at in run.milestones] == [(1, 1), (1, 1), (2, 2)]
        for at in run.milestones:
            robust, clean = at.scores["robust"], at.scores["clean"]
            assert all(a <= b for a, b in zip(robust, clean, strict=True)) and {*robust, *clean} <= {0.0, 1.0}
    assert "robust accuracy" in (tmp_path / "results.txt").read_text()


@pytest.mark.parametrize("name", adversarial.METHODS)
def test_methods_train_what_they_say(name: str) -> None:
    chosen = adversarial.arguments(["--images", "2"])
    contestant = adversarial.contestant(adversarial.METHODS[name], 0, chosen)
    task, module = contestant.module.task, contestant.module
    assert module.solver is adversarial.METHODS[name].solver
    assert task.classifier.unroll == (8 if name == "unrolled" else None)
    assert isinstance(task.training_loss, Clean) == (name == "clean")
    assert contestant.next_batch().image.shape == (48, 1, 28, 28)
