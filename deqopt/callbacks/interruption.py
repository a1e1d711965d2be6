"""Saves the last state of a run that is asked to end or that fails."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from deqopt.callbacks.checkpoint import RunCheckpoint
from deqopt.errors import CheckpointError, NonFiniteError
from deqopt.signals import Interrupted, signals


class Interruption(Callback):
    """Writes ``last.ckpt`` when a signal or an exception ends training.

    After a signal (SIGINT, SIGTERM, SIGHUP) to any process of the run, the current batch is finished; then all
    processes write ``last.ckpt`` and end with the exit status of the signal. A second signal ends the process at once.
    If the signal comes during validation, a run with one process does not wait for the end of validation; a run with
    several processes does. Outside training, nothing is written.

    Under SLURM with automatic requeueing, SIGUSR1 makes Lightning save its checkpoint and requeue the job, also between
    two batches.

    After an exception, the state before the interrupted batch is saved, see :class:`Resume`, unless the optimiser had
    begun to change the weights. :class:`RunCheckpoint` refuses weights that are not finite.

    Training ends before the next batch or the next step of validation, so that the last batch is complete: with the
    state of all callbacks, and its row in the log.

    Example:
        >>> trainer = Trainer(callbacks=[Interruption(), RunCheckpoint()], logger=False, accelerator="cpu")
    """

    def __init__(self) -> None:
        self._handlers = ExitStack()
        self._step: int | None = None  # at the end of the last batch; None outside training
        self._requeue: Callable[[int, FrameType], None] | None = None
        self._requeued = False

    # -- from beginning to end ------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._handlers.enter_context(signals.heeded())
        # Lightning's own handlers contact the other processes at once, even in the middle of another operation.
        handlers = trainer._signal_connector
        handlers._sigterm_notifier_fn = lambda *_: None  # type: ignore[method-assign]
        if self._requeue is None:
            self._requeue = handlers._slurm_sigusr_handler_fn
            handlers._slurm_sigusr_handler_fn = self._note_requeue  # type: ignore[method-assign]

    def _note_requeue(self, signum: int, _: FrameType) -> None:
        self._requeued = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.check()
        signals.deferred = True
        self._step = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()
        signals.check()

    def _release(self) -> None:
        signals.deferred = False
        self._handlers.close()

    # -- signals --------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._end_if_asked(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._step = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_if_asked(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        # Processes may have different numbers of batches, so they cannot communicate here.
        if self._step is None:
            signals.check()
        elif trainer.world_size == 1:
            self._end_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._step is not None:
            self._end_if_asked(trainer)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        signals.check()

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        signals.check()

    def _end_if_asked(self, trainer: Trainer) -> None:
        if _agreed(trainer, int(self._requeued)) and self._requeue is not None:
            self._requeued = False
            self._requeue(signal.SIGUSR1, sys._getframe())
        if number := _agreed(trainer, signals.received or 0):
            self._save(trainer)
            raise Interrupted(128 + number)

    # -- exceptions -----------------------------------------------------------------------------------------------

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()
        training = trainer.state.fn is TrainerFn.FITTING and self._step is not None
        saved = any(one.last_step == trainer.global_step for one in _run_checkpoints(trainer))  # nothing new to save
        if training and not saved and not isinstance(exception, Interrupted) and trainer.world_size == 1:
            if self._is_between_steps(trainer):
                self._save(trainer)
            else:
                rank_zero_warn(f"step {trainer.global_step} was broken off while the weights changed: it is not saved")
        self._step = None

    def _is_between_steps(self, trainer: Trainer) -> bool:
        """Whether the weights are those after the last completed batch."""
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        assert isinstance(batches, _ProcessedTracker)
        return batches.processed == batches.ready or trainer.global_step == self._step

    def _save(self, trainer: Trainer) -> None:
        for callback in _run_checkpoints(trainer):
            try:
                path = callback.write_last(trainer)
            except (NonFiniteError, CheckpointError) as error:  # the error that ended the run must be reported too
                rank_zero_warn(str(error))
            else:
                rank_zero_info(f"Interrupted at step {trainer.global_step}: --ckpt_path last goes on from {path}")


def _run_checkpoints(trainer: Trainer) -> list[RunCheckpoint]:
    return [one for one in trainer.checkpoint_callbacks if isinstance(one, RunCheckpoint)]


def _agreed(trainer: Trainer, number: int) -> int:
    """The largest number of all processes; all must call it at the same time."""
    if trainer.world_size == 1:
        return number
    own = torch.tensor(number, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(own, reduce_op="max"))
