"""What a task says of its solver and adjoint, and a precision that does not fit, in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from command import complaint, written
from deqopt import Task
from tiny_task import Tiny

TINY = ("--solver.max_nfe=6", "--solver.step_size=0.3", "--trainer.limit_train_batches=2")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


FORGETFUL = """\
from tiny_task import Tiny
from deqopt.solvers import Tracking

class Forgetful(Tiny):
    {decorator}
    def default_solver(cls):
        return Tracking
"""


@pytest.mark.parametrize(
    ("decorator", "pattern"),
    [
        ("", r"forgetful0.Forgetful.*Forgetful.default_solver must be a class method.*write @classmethod above it"),
        ("@classmethod", r"what Forgetful.default_solver\(\) returns is the class Tracking itself.*Tracking\(\.\.\.\)"),
    ],
)
def test_defaults_that_a_task_gets_wrong(
    decorator: str, pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"forgetful{len(decorator)}"
    written(tmp_path / f"{name}.py", FORGETFUL.format(decorator=decorator))
    monkeypatch.syspath_prepend(tmp_path)
    message = complaint("fit", f"--task={name}.Forgetful", *TINY)
    assert re.search(pattern, message), message


def test_a_precision_that_cannot_be_used_names_one_that_can() -> None:
    assert "use bf16-mixed" in complaint(
        "fit", "--task=tiny_task.Tiny", *TINY, "--trainer.precision=bf16-true", "--trainer.max_epochs=1"
    )


class Unpredicting(Tiny):
    """Has nothing to write."""

    write_predictions = Task.write_predictions


def test_predicting_with_a_task_that_writes_nothing_is_refused_before_its_data_is_asked_for() -> None:
    message = complaint("predict", f"--task={Path(__file__).stem}.Unpredicting", "--trainer.accelerator=cpu")
    assert message == "Unpredicting does not define write_predictions(), which predict needs"
