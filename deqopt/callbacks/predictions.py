"""Writes the results of `deqopt predict`, batch by batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from deqopt.errors import printable
from deqopt.task import Task
from deqopt.weights import cached_weights


def prediction_directory(trainer: Trainer, task: Task) -> Path:
    """The output folder of predict: ``Task.prediction_directory``, by default the folder ``predictions`` of the run.

    All processes must call it at the same time, because the folder of the run is broadcast.
    """
    run = Path(trainer.log_dir or trainer.default_root_dir)
    return task.prediction_directory() or run / "predictions"


class PredictionWriter(Callback):
    """Passes every solved batch to ``Task.write_predictions``, and creates the folder :func:`prediction_directory`.

    Example:
        >>> trainer = Trainer(callbacks=[PredictionWriter()], logger=False, accelerator="cpu")
    """

    def __init__(self) -> None:
        self._directory = Path()
        self._written = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Called once, because processes may have different numbers of batches.
        self._directory = prediction_directory(trainer, pl_module.task)  # type: ignore[arg-type]
        self._directory.mkdir(parents=True, exist_ok=True)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        with torch.no_grad(), cached_weights(pl_module):
            files = pl_module.task.write_predictions(outputs["equilibrium"], outputs["batch"], self._directory)  # type: ignore[operator, union-attr]
        self._written += len(files)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        written = trainer.strategy.reduce(torch.tensor(self._written, device=pl_module.device), reduce_op="sum")
        rank_zero_info(f"{int(written)} files written to {printable(self._directory)}")
