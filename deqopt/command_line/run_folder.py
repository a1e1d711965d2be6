"""The folder of a run, its own even where many runs are started at the same moment."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from deqopt.errors import CheckpointError


class RunFolder(Callback):
    """``version_N`` below the folder of a task's runs, with one more than the largest N that is there.

    The first process of a run makes the folder when its name is first asked for: whoever makes it has claimed it. The
    other processes of the run are told the number once all of them are there, and that they go on from one checkpoint
    is checked: each has found out for itself which is the newest.

    Args:
        runs: the folder of all runs of the task.

    Raises:
        CheckpointError: while the processes started, another run wrote a newer checkpoint.
    """

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self._number: int | None = None
        self._made: list[Path] = []

    @property
    def number(self) -> int:
        """N; in processes that were not told it yet, the one that would be next."""
        if self._number is None and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self._made = [folder for folder in (self.runs, self.runs.parent) if not folder.exists()]
            self._number = claim(self.runs)
        return next_number(self.runs) if self._number is None else self._number

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves no empty folders of a run that ended before it began, on unreadable data for instance."""
        if self._number is not None and trainer.is_global_zero:
            with suppress(OSError):  # not empty, or others' already
                for folder in (self.runs / f"version_{self._number}", *self._made):
                    folder.rmdir()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._number = trainer.strategy.broadcast(self._number)
        first, own = trainer.strategy.broadcast(str(trainer.ckpt_path)), str(trainer.ckpt_path)
        if first != own:
            raise CheckpointError(
                f"the first process begins with {first} and another one with {own}, which was written meanwhile: give "
                "the path with --ckpt_path"
            )


def claim(runs: Path) -> int:
    """Make the next folder ``version_N`` and return N, which no other process gets.

    Raises:
        OSError: the folder cannot be made.
    """
    number = next_number(runs)
    while True:
        runs.mkdir(parents=True, exist_ok=True)
        try:
            (runs / f"version_{number}").mkdir()
        except FileExistsError:
            number += 1
        except FileNotFoundError:  # another run has just left, and taken its empty folders along
            continue
        else:
            return number


def next_number(runs: Path) -> int:
    """One more than the largest N of all ``version_N``."""
    names = [path.name for path in runs.iterdir()] if runs.is_dir() else []
    return 1 + max((int(found[1]) for name in names if (found := re.fullmatch(r"version_(\d+)", name))), default=-1)


class CSVInRunFolder(CSVLogger):
    """``metrics.csv`` in the folder of the run."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder.runs.parent, name=folder.runs.name)
        self._folder = folder

    @property
    def version(self) -> int:
        return self._folder.number


class TensorBoardInRunFolder(TensorBoardLogger):
    """The events of TensorBoard in the folder of the run."""

    def __init__(self, folder: RunFolder, **settings: Any) -> None:
        super().__init__(folder.runs.parent, name=folder.runs.name, **settings)
        self._folder = folder

    @property
    def version(self) -> int:
        return self._folder.number
