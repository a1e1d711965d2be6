"""Checkpoints of a run: the best, the last, and the last before an interruption."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException


class RunCheckpoint(ModelCheckpoint):
    """``checkpoints/best.ckpt`` and ``checkpoints/last.ckpt``.

    Ctrl-C and SIGTERM write ``last.ckpt`` before the process ends, so that ``--ckpt_path last`` goes on from there. Other
    exceptions write nothing: weights that are NaN must not replace good ones.

    Args:
        monitor: the logged figure by which the best is chosen; the lowest wins.
        mode: ``max`` where the highest wins.
    """

    def __init__(self, monitor: str = "val/loss", mode: str = "min") -> None:
        super().__init__(monitor=monitor, mode=mode, filename="best", save_last=True, enable_version_counter=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        interrupted = isinstance(exception, (KeyboardInterrupt, SIGTERMException))
        training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if interrupted and training and self.dirpath and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt")
