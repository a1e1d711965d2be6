"""A schedule that ends with the run needs a run that ends."""

from __future__ import annotations

import math

import pytest

from command import TINY, complaint, succeeded, user_folder
from deqopt.errors import ProblemError
from deqopt.optimization import Optimization, Schedule

folder = user_folder(TINY)


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("steps", [math.inf, -1])
def test_a_run_without_end(schedule: Schedule, steps: float) -> None:
    optimization = Optimization(schedule=schedule)
    if schedule is Schedule.CONSTANT:
        assert optimization.length(steps) == 0
        return
    with pytest.raises(ProblemError, match=rf"the schedule {schedule.name} ends with the run"):
        optimization.length(steps)
    assert optimization.length(7.0) == 7


@pytest.mark.parametrize("schedule", ["ONE_CYCLE", "COSINE"])
@pytest.mark.parametrize("end", ["--trainer.max_epochs=-1", "--trainer.max_time=00:00:00:01"])
def test_the_command_line_says_what_is_missing(schedule: str, end: str) -> None:
    words = ("fit", "--config=small.yaml", f"--model.optimization.schedule={schedule}", end)
    without = () if "max_epochs" in end else ("--trainer.max_epochs=-1",)
    message = complaint(*words, *without)
    assert f"the schedule {schedule} ends with the run" in message and "trainer.max_steps" in message


def test_a_constant_rate_needs_no_end() -> None:
    words = ("--config=small.yaml", "--model.optimization.schedule=CONSTANT", "--trainer.max_epochs=-1")
    succeeded("fit", *words, "--trainer.max_time=00:00:00:01")
