"""What the report of a test says, logs and writes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from deqopt import JointModule, Task
from deqopt.solvers import JointSolver
from tiny_task import quiet_trainer


def lines_said(monkeypatch: pytest.MonkeyPatch, *modules: str) -> list[str]:
    """What reports, and these modules, print from now on."""
    lines: list[str] = []
    for module in ("deqopt.callbacks.comparison", *modules):
        monkeypatch.setattr(f"{module}.rank_zero_info", lines.append)
    return lines


def rows_of(directory: Path, name: str) -> list[dict[str, str]]:
    """The rows of ``figures/<name>.csv`` of the one run in a directory."""
    (path,) = directory.rglob(f"figures/{name}.csv")
    return table(path)


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def figures_of_test(task: Task, solver: JointSolver, directory: Path, **settings: Any) -> dict[str, float]:
    """What a test logs, without ``test/``."""
    module, trainer = JointModule(task, solver=solver), quiet_trainer(directory, **settings)
    (figures,) = trainer.test(module, datamodule=task.datamodule(), verbose=False)
    return {name.removeprefix("test/"): value for name, value in figures.items()}
