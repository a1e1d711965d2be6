"""The command line called inside this process, on a task small enough for it."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tiny_task  # noqa: F401  (so that configurations may name its class)
from deqopt.cli import main

SMALL_TASK: dict[str, Any] = {
    "class_path": "celeba",
    "init_args": {"size": 8, "image_channels": 1, "batch_size": 32, "latent": 4, "widths": [4, 4], "resolution": 4},
}
SMALL_TRAINER: dict[str, Any] = {
    "max_epochs": 2,
    "limit_train_batches": 3,
    "limit_val_batches": 1,
    "limit_test_batches": 1,
    "num_sanity_val_steps": 0,
    "accelerator": "cpu",
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}
SMALL: dict[str, Any] = {
    "task": SMALL_TASK,
    "solver": {"class_path": "Tracking", "init_args": {"max_nfe": 8, "step_size": 2.0}},
    "trainer": SMALL_TRAINER,
}
TINY: dict[str, Any] = {
    "task": {"class_path": "tiny_task.Tiny"},
    "solver": {"class_path": "Tracking", "init_args": {"max_nfe": 6, "step_size": 0.3}},
    "trainer": SMALL_TRAINER,
}
"""A run of as many steps as those of ``SMALL``, many times as fast: without images, and drawing little."""


@dataclass(frozen=True)
class Answer:
    """How a command ended: exit status, standard output, standard error."""

    status: int
    output: str
    error: str

    @property
    def run(self) -> Path:
        """The folder that the command says it leaves."""
        found = re.search(r"This run is kept in (.+)", self.output)
        assert found, self
        return Path(found[1])


def deqopt(*words: object) -> Answer:
    """``deqopt WORD ...``; what is not an error for the user comes through as an exception."""
    output, error, status = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(output), redirect_stderr(error):
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            status = int(end.code or 0)
    return Answer(status, output.getvalue(), error.getvalue())


def succeeded(*words: object) -> Answer:
    answer = deqopt(*words)
    assert answer.status == 0, answer
    return answer


def complaint(*words: object) -> str:
    """The one line with which a command refuses."""
    answer = deqopt(*words)
    assert answer.status == 2, answer
    lines = answer.error.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("deqopt: error: "), answer
    return lines[0].removeprefix("deqopt: error: ")


def resolved(*words: object) -> dict[str, Any]:
    """The configuration that a command would run with."""
    config: dict[str, Any] = yaml.safe_load(succeeded(*words, "--print_config").output)
    return config


def written(path: Path, settings: Any) -> Path:
    """A configuration file; text is written as it is."""
    path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
    return path


def checkpoint(path: Path, task: str, **arguments: Any) -> Path:
    """A file like those that runs leave; weights are not looked at before the run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"task": {"class_path": task, "init_args": arguments}, "optimization": {"lr": 0.25}, "compile": False}
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.5.0", "hyper_parameters": settings}, path)
    return path


def without_variables(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Commands run in this folder and without settings of this machine."""
    patch.chdir(folder)
    for name in [name for name in os.environ if name.startswith("DEQOPT_")]:
        patch.delenv(name)


def empty_folder(**files: Any) -> Any:
    """The fixture of a file whose tests each have a folder for themselves, with these configurations in it."""

    @pytest.fixture(autouse=True)
    def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        without_variables(monkeypatch, tmp_path)
        for name, settings in files.items():
            written(tmp_path / f"{name}.yaml", settings)

    return elsewhere


def user_folder(settings: dict[str, Any]) -> Any:
    """The fixture of a file whose commands share a folder, as those of a user would; ``small.yaml`` has settings,
    and ``tiny.yaml`` has TINY."""

    @pytest.fixture(scope="module", autouse=True)
    def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
        with pytest.MonkeyPatch.context() as patch:
            folder = tmp_path_factory.mktemp("user")
            without_variables(patch, folder)
            written(folder / "small.yaml", settings)
            written(folder / "tiny.yaml", TINY)
            yield folder

    return folder


def column(run: Path, name: str) -> list[float]:
    """A figure of ``metrics.csv`` wherever it was logged, in order."""
    with (run / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def variables(settings: dict[str, Any], names: Sequence[str] = ()) -> dict[str, str]:
    """Settings as the environment variables that stand for them."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= variables(value, (*names, key))
        else:
            found["DEQOPT_" + "__".join((*names, key)).upper()] = str(value)
    return found
