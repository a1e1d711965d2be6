"""Writes the task's figures and the convergence plot of the first batch into the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from deqopt.figures import convergence, write_figure
from deqopt.weights import cached_weights


class FigureWriter(Callback):
    """After every validation and every test: writes ``figures/<stage>_<name>.png``, drawn from the first batch.

    The names are those of ``Task.figures``, and ``convergence``, which shows objective and residual against
    evaluations.

    Example:
        >>> trainer = Trainer(callbacks=[FigureWriter()], accelerator="cpu")
    """

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx == 0 and not trainer.sanity_checking:
            self._draw("val", trainer, pl_module, outputs)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx == 0:
            self._draw("test", trainer, pl_module, outputs)

    def _draw(self, stage: str, trainer: Trainer, pl_module: LightningModule, outputs: Any) -> None:
        directory = figure_directory(trainer)
        if directory is None:
            return
        with torch.no_grad(), cached_weights(pl_module):
            figures = dict(pl_module.task.figures(outputs["equilibrium"], outputs["batch"]))  # type: ignore[operator, union-attr]
        figures["convergence"] = convergence(outputs["solved"].trace)
        for name, figure in figures.items():
            write_figure(figure, directory / f"{stage}_{name}.png")


def figure_directory(trainer: Trainer) -> Path | None:
    """The folder for the figures of a run; None if the run has no folder, and in all processes except the first.

    Must be called in all processes, because the first broadcasts ``trainer.log_dir``.
    """
    directory = trainer.log_dir
    if not trainer.is_global_zero or directory is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    return Path(directory) / "figures"
