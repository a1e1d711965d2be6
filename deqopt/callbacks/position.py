"""The position of a run in its epochs, and how to make Lightning's loops go on from there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.progress import _ProcessedTracker


@dataclass(frozen=True)
class Position:
    """The last batch that a run has completed.

    Lightning 2.6 saves the counters of its loops, but does not go on correctly from some states: after the last batch
    of an epoch, and after any other batch that is followed by validation, it skips this validation.

    Args:
        epoch: the current epoch, or the next one; 0 is the first.
        batch: number of completed batches of the epoch.
        batches: number of batches per epoch, within the limits of the trainer.
        total: number of completed batches of the whole run.
        validation: whether the validation after the last batch is still to be done, from its beginning.
        logged: step of the loggers before the loop goes on.
    """

    epoch: int
    batch: int
    batches: float
    total: int
    validation: bool
    logged: int

    @classmethod
    def of(cls, trainer: Trainer, *, validated: bool) -> Position:
        """The present position of a run. A batch counts as completed from ``on_train_batch_end`` on. Within a batch,
        the position is the one where the accumulation of gradients began.

        Args:
            trainer: trainer of the run.
            validated: whether the current validation, if any, has ended except for the remaining hooks.
        """
        loop, batches = trainer.fit_loop.epoch_loop, trainer.num_training_batches
        epochs, now = trainer.fit_loop.epoch_progress.current, loop.batch_progress.current
        assert isinstance(epochs, _ProcessedTracker) and isinstance(now, _ProcessedTracker)
        ended = now.processed > now.completed  # by one, in on_train_batch_end
        batch, total = now.completed + ended, loop.batch_progress.total.completed + ended
        if now.started > batch:  # gradients are those of a part of a batch: back to where they begin
            batch, total = (count - batch % trainer.accumulate_grad_batches for count in (batch, total))
        complete = loop.batch_progress.is_last_batch or batch >= batches
        logged = loop._batches_that_stepped
        if epochs.processed == epochs.ready and (complete or not batch):
            return cls(epochs.processed, 0, batches, total, False, logged)
        if epochs.started < epochs.ready or not batch:  # before the first batch
            return cls(epochs.ready - 1, 0, batches, total, False, logged)
        # An epoch may also be broken off, by max_steps or should_stop; it is still under way.
        due, steps = _validation_is_due(trainer, batch, total), not accumulates(trainer, batch)
        under_way = ended or trainer.validating
        return cls(
            epoch=epochs.ready - 1,
            batch=batch,
            batches=batches,
            total=total,
            validation=due and under_way and (ended or not validated),
            logged=logged + (under_way and steps) - (due and steps),
        )

    def restore(self, loops: dict[str, Any]) -> None:
        """Change the saved state of the fit loop so that Lightning goes on from here.

        To Lightning, the run then appears to have been saved at the end of validation or, if validation is still to be
        done, at the end of one of its batches. So it repeats no training batch and skips nothing.
        """
        under_way = int(self.batch > 0)
        epochs = loops["epoch_progress"]
        earlier = epochs["total"]["completed"] - epochs["current"]["completed"]
        for counts, before in ((epochs["current"], 0), (epochs["total"], earlier)):
            counts["ready"] = counts["started"] = before + self.epoch + under_way
            counts["processed"] = counts["completed"] = before + self.epoch
        batches = loops["epoch_loop.batch_progress"]
        batches["current"] = dict.fromkeys(batches["current"], self.batch)
        batches["total"] = dict.fromkeys(batches["total"], self.total)
        batches["is_last_batch"] = self.batch >= self.batches
        seen = loops["epoch_loop.val_loop.batch_progress"]
        seen["current"] = dict.fromkeys(seen["current"], 0)
        seen["total"] = dict.fromkeys(seen["total"], 0)
        seen["total"]["ready"] = seen["total"]["started"] = int(self.validation)
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = self.logged

    def enter(self, trainer: Trainer) -> None:
        """Change the state that Lightning's loops only have once they have begun; called in ``on_train_start``."""
        if not self.batch:
            trainer.fit_loop.epoch_loop.restarting = False
        elif self.batch >= self.batches and not _validation_is_due(trainer, self.batch, self.total):
            # No batch is left, and no validation either: so the next question for a batch ends the epoch.
            fetcher = trainer.fit_loop._data_fetcher
            assert fetcher is not None
            fetcher.done = True

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def accumulates(trainer: Trainer, batch: int) -> bool:
    """Whether the gradients of the batch with this number (1 or more) in its epoch are kept for the next batch."""
    return batch % trainer.accumulate_grad_batches != 0 and batch < trainer.num_training_batches


def _validation_is_due(trainer: Trainer, batch: int, total: int) -> bool:
    """Whether validation follows a batch, given by its numbers (1 or more) in its epoch and in the whole run."""
    every = trainer.val_check_batch
    if not trainer.fit_loop.epoch_loop._should_check_val_epoch() or every is None:  # None: after so many minutes
        return False
    return (total if trainer.check_val_every_n_epoch is None else batch) % every == 0
