"""Checkpoints of a run: the best, the last, and the last before an interruption."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from deqopt.callbacks.nonfinite import first_not_finite
from deqopt.checkpoints import Record, copy, finite_number, previous, read
from deqopt.errors import CheckpointError, DeqoptError, NonFiniteError
from deqopt.ranges import positive

BEST, LAST = "best.ckpt", "last.ckpt"


class RunCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/best.ckpt`` and ``checkpoints/last.ckpt`` of a run.

    ``last.ckpt`` is written after every validation, every few minutes, and at the end of training; it does not depend
    on the monitored figure. ``best.ckpt`` is the best of the whole run: a run that goes on from a checkpoint begins
    with the best so far. Weights that are NaN or infinite are never written. If a file cannot be written, for instance
    on a full disk, the previous file stays, and the run goes on with a warning; at the end of training it is an error.

    Args:
        monitor: logged figure by which the best checkpoint is chosen; NaN and infinity are never the best.
        mode: whether the lowest (min) or the highest (max) value is the best.
        every_n_minutes: largest number of minutes before ``last.ckpt`` is written again, between two steps.

    Raises:
        ProblemError: ``every_n_minutes`` is not larger than 0.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from deqopt.callbacks import RunCheckpoint
        >>> best = RunCheckpoint(monitor="val/psnr", mode="max", every_n_minutes=30.0)
        >>> trainer = Trainer(callbacks=[best], logger=False, accelerator="cpu")
    """

    def __init__(
        self, monitor: str = "val/loss", mode: Literal["min", "max"] = "min", every_n_minutes: float = 10.0
    ) -> None:
        positive("checkpoint", every_n_minutes=every_n_minutes)
        super().__init__(monitor=monitor, mode=mode, filename="best", save_last=True, enable_version_counter=False)
        self.every_n_minutes = every_n_minutes
        self._step = 0
        self.last_step: int | None = None  # the step that last.ckpt holds, in this run
        self._last_written = 0.0
        self._failure: DeqoptError | None = None
        self._missed = False
        self._seen: float | None = None

    # -- when ---------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step, self.last_step, self._failure = trainer.global_step, None, None
        self._last_written = time.monotonic()
        self._seen = finite_number(self._figure(trainer))
        if _writes(trainer):
            self._bring_best(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        # Accumulated gradients are in no checkpoint, and the end of an epoch writes one anyway.
        if _writes(trainer) and stepped and not _epoch_is_complete(trainer):
            due = time.monotonic() - self._last_written >= 60 * self.every_n_minutes
            if trainer.strategy.reduce_boolean_decision(due, all=False):
                self._try_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _writes(trainer):
            self._consider(trainer, validated=True)
            self._try_last(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not _writes(trainer):
            return
        unvalidated = not trainer.enable_validation
        improved = self._consider(trainer, validated=False)
        written = self.last_step == trainer.global_step
        if improved or (not written and (unvalidated or _training_ends(trainer))):
            self._try_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises the error that prevented the last state from being written."""
        if not _writes(trainer) or self.last_step == trainer.global_step:
            return
        if self._failure is not None:
            raise self._failure
        self.write_last(trainer)

    # -- writing ------------------------------------------------------------------------------------------------------

    def write_last(self, trainer: Trainer) -> Path:
        """Write ``last.ckpt``: in all processes together, at the end of a batch, a validation or an epoch.

        Returns:
            The path of the file.

        Raises:
            NonFiniteError: weights, or values of the optimiser, are NaN or infinite.
            CheckpointError: the file cannot be written. The previous file stays unchanged.
        """
        path = self._path(LAST)
        self.last_model_path = str(path)
        self._save(trainer, path)
        self.last_step, self._last_written, self._failure = trainer.global_step, time.monotonic(), None
        return path

    def _try_last(self, trainer: Trainer) -> None:
        try:
            self.write_last(trainer)
        except (NonFiniteError, CheckpointError) as error:
            self._last_written, self._failure = time.monotonic(), error
            rank_zero_warn(f"{error}; the run goes on")

    def _save(self, trainer: Trainer, path: Path) -> None:
        lost = first_not_finite(trainer)
        if not trainer.strategy.reduce_boolean_decision(lost is None):
            raise NonFiniteError(
                f"no {path.name} is written at step {trainer.global_step}: {lost or 'the weights of another process'} "
                "became NaN or infinite"
            )
        failure = None
        try:
            trainer.save_checkpoint(path, weights_only=False)
        except OSError as error:
            failure = f"{path} could not be written: {error.strerror or error}"
            trainer.strategy.barrier("Trainer.save_checkpoint")  # the processes that do not write are waiting here
        failure = trainer.strategy.broadcast(failure)
        if failure is not None:
            raise CheckpointError(failure)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(self)

    def _path(self, name: str) -> Path:
        assert self.dirpath is not None
        return Path(self.dirpath) / name

    # -- the best -----------------------------------------------------------------------------------------------------

    def _consider(self, trainer: Trainer, validated: bool) -> bool:
        """Write ``best.ckpt`` if the monitored figure is better than ever. Returns whether it was written.

        Without a validation just before, a figure that did not change may belong to an earlier state.
        """
        figure = trainer.strategy.broadcast(self._figure(trainer))
        if figure is None and (validated or not trainer.enable_validation) and not self._missed:
            self._missed = True
            figures = ", ".join(sorted(trainer.callback_metrics)) or "none"
            rank_zero_warn(
                f"checkpoint.monitor: no figure {self.monitor} was logged, so that no best.ckpt is written; "
                f"the figures are {figures}"
            )
        score = finite_number(figure)
        if figure is not None:
            self.current_score = torch.tensor(figure, dtype=torch.float64)
        stale, self._seen = score == self._seen and not validated, score
        if stale or score is None or not self._is_better(score):
            return False
        before = self.best_model_score, self.best_model_path
        self.best_model_score, self.best_model_path = self.current_score, str(self._path(BEST))
        try:
            self._save(trainer, self._path(BEST))
        except (NonFiniteError, CheckpointError) as error:
            self.best_model_score, self.best_model_path = before
            rank_zero_warn(f"{error}; the run goes on")
            return False
        return True

    def _figure(self, trainer: Trainer) -> float | None:
        """The latest value of the monitored figure; None if there is none yet."""
        value = trainer.callback_metrics.get(str(self.monitor))
        return None if value is None else float(value)

    def _is_better(self, score: float) -> bool:
        best = finite_number(self.best_model_score)
        return best is None or (score < best if self.mode == "min" else score > best)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the best score so far, which Lightning drops in a new folder."""
        if finite_number(state_dict.get("best_model_score")) is not None:
            self.best_model_score = state_dict["best_model_score"]
            self.best_model_path = str(state_dict.get("best_model_path", ""))
            self.current_score = state_dict.get("current_score")

    def _bring_best(self, trainer: Trainer) -> None:
        """Copy the best checkpoint so far into the folder of this run, which goes on from another run."""
        here = self._path(BEST)
        if self.best_model_score is None or Path(self.best_model_path) == here:
            return
        before, self.best_model_path = self.best_model_path, str(here)
        if trainer.is_global_zero:
            beside = Path(trainer.ckpt_path or here).with_name(BEST)
            places = (Path(before), beside, previous(beside))
            found = next((path for path in places if self._is_the_best(path)), None)
            try:
                if found is None:
                    raise CheckpointError(f"the best checkpoint so far was not found at {before}")
                copy(found, here)
            except (OSError, CheckpointError) as error:
                score = finite_number(self.best_model_score)
                rank_zero_warn(f"{error}; {here} will be written once {self.monitor} is better than {score:.6g}")

    def _is_the_best(self, path: Path) -> bool:
        try:
            record = Record.of(read(path))
        except CheckpointError:
            return False
        return record.monitor == self.monitor and record.score == finite_number(self.best_model_score)


def _writes(trainer: Trainer) -> bool:
    """Whether this is real training, and not a trial run."""
    attempt = trainer.fast_dev_run or trainer.sanity_checking  # type: ignore[attr-defined]
    return trainer.state.fn == TrainerFn.FITTING and not attempt


def _epoch_is_complete(trainer: Trainer) -> bool:
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.is_last_batch or progress.current.ready >= trainer.num_training_batches


def _training_ends(trainer: Trainer) -> bool:
    """Whether the epoch that is ending now is the last one."""
    steps, epochs = trainer.max_steps, trainer.max_epochs
    out_of_steps = 0 <= steps <= trainer.global_step
    out_of_epochs = epochs is not None and 0 <= epochs <= trainer.current_epoch + 1
    return trainer.should_stop or out_of_steps or out_of_epochs
