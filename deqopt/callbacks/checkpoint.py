"""Checkpoints of a run: the best, the last, and the last before an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException


class RunCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/best.ckpt`` and ``checkpoints/last.ckpt`` of a run.

    Ctrl-C and SIGTERM write ``last.ckpt`` before the process ends, so that ``--ckpt_path last`` goes on from there.
    Other exceptions write nothing: weights that are NaN must not replace good ones.

    Args:
        monitor: the logged figure by which the best is chosen.
        mode: whether the lowest (min) or the highest (max) is the best.
    """

    def __init__(self, monitor: str = "val/loss", mode: Literal["min", "max"] = "min") -> None:
        super().__init__(monitor=monitor, mode=mode, filename="best", save_last=True, enable_version_counter=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # ModelCheckpoint would write even then
            super().on_train_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        interrupted = isinstance(exception, (KeyboardInterrupt, SIGTERMException))
        training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if interrupted and training and self.dirpath and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            path = Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}.ckpt"
            trainer.save_checkpoint(path)
            rank_zero_info(f"Interrupted at step {trainer.global_step}: --ckpt_path last goes on from {path}")
