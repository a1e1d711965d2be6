"""Every run has a folder of its own, also where many are started at the same moment."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only

from deqopt.command_line.run_folder import CSVInRunFolder, RunFolder, TensorBoardInRunFolder, claim, next_number
from deqopt.errors import CheckpointError

TOGETHER, TIMES = 8, 20


def test_threads_that_claim_together_get_folders_of_their_own(tmp_path: Path) -> None:
    barrier = Barrier(TOGETHER)

    def claims(_: int) -> list[int]:
        found = []
        for _ in range(TIMES):
            barrier.wait()
            found.append(claim(tmp_path / "runs" / "task"))
        return found

    with ThreadPoolExecutor(TOGETHER) as pool:
        numbers = [number for found in pool.map(claims, range(TOGETHER)) for number in found]
    assert sorted(numbers) == list(range(TOGETHER * TIMES))
    assert {path.name for path in (tmp_path / "runs" / "task").iterdir()} == {f"version_{n}" for n in numbers}


def test_processes_that_claim_together_get_folders_of_their_own(tmp_path: Path) -> None:
    waiting, start = os.pipe()
    children = []
    for process in range(3):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                os.close(start)
                os.read(waiting, 1)  # until the parent closes its end
                numbers = [claim(tmp_path / "task") for _ in range(TIMES)]
                (tmp_path / str(process)).write_text(" ".join(map(str, numbers)))
            finally:
                os._exit(0)
    os.close(start)
    os.close(waiting)
    for child in children:
        os.waitpid(child, 0)
    numbers = [int(word) for process in range(3) for word in (tmp_path / str(process)).read_text().split()]
    assert sorted(numbers) == list(range(3 * TIMES))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), 0),
        (("version_0", "version_2", "version_10"), 11),
        (("version_x", "version_3_old", "version_-1", "aversion_7", "version_"), 0),
    ],
)
def test_the_next_number_is_one_more_than_the_largest(names: tuple[str, ...], expected: int, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    assert next_number(tmp_path) == expected
    assert claim(tmp_path) == expected and claim(tmp_path) == expected + 1


def test_a_file_in_the_way_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "version_0").touch()
    (tmp_path / "version_2").symlink_to(tmp_path / "nowhere")
    assert claim(tmp_path) == 3


def test_a_folder_of_runs_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for runs in (tmp_path / "file" / "task", tmp_path / "file", tmp_path / "link"):
        with pytest.raises(OSError):
            claim(runs)


def test_the_loggers_of_a_run_share_the_folder_that_it_claims(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "task")
    loggers = CSVInRunFolder(folder), TensorBoardInRunFolder(folder)
    assert not list(tmp_path.iterdir())  # until one asks
    assert {Path(logger.log_dir) for logger in loggers} == {tmp_path / "task" / "version_0"}
    assert [path.name for path in (tmp_path / "task").iterdir()] == ["version_0"]
    assert RunFolder(tmp_path / "task").number == 1 and folder.number == 0


def test_other_processes_of_a_run_claim_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert RunFolder(tmp_path / "task").number == 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("first", [None, "runs/task/version_0/checkpoints/last.ckpt"])
def test_processes_of_a_run_begin_with_the_same_checkpoint(first: str | None, tmp_path: Path) -> None:
    folder, told = RunFolder(tmp_path / "task"), [7, str(first)]
    trainer: Any = SimpleNamespace(ckpt_path=first, strategy=SimpleNamespace(broadcast=lambda _: told.pop(0)))
    folder.setup(trainer, LightningModule(), "fit")
    assert folder.number == 7
    told = [7, "runs/task/version_1/checkpoints/last.ckpt"]
    with pytest.raises(
        CheckpointError, match=rf"begins with .*version_1.*last\.ckpt and another one with {first}, which"
    ):
        folder.setup(trainer, LightningModule(), "fit")
