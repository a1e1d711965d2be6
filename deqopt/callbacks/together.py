"""Ends all processes of a run when one of them ends."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Callback, LightningModule, Trainer

from deqopt.companions import Companions, Loss
from deqopt.errors import DeqoptError
from deqopt.signals import Interrupted, signals

PATIENCE = 15.0
"""Seconds before a process is forced to end, because it may be blocked in a collective operation."""


class EndTogether(Callback):
    """Ends every process of a run within 15 seconds after one was killed or raised an error.

    Without this callback, the remaining processes may wait for the lost process in a collective operation for half an
    hour. One line gives the reason: it comes from the process that raised or, if a process was killed, from the first
    remaining process. The callback does nothing in a run with one process.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[EndTogether()], logger=False, accelerator="cpu")
    """

    def __init__(self) -> None:
        self._companions: Companions | None = None
        self._rank, self._size = 0, 1
        self._lost = threading.Event()

    def begin_early(self, trainer: Trainer) -> None:
        """Connect to the other processes as soon as they can communicate, before data is prepared; by default in
        ``setup``."""
        strategy = trainer.strategy
        connect = strategy.setup_environment

        def connect_and_meet() -> None:
            if trainer.world_size == 1:
                connect()
                return
            with signals.deadly(), _ending_with_parent():
                connect()  # waits for the others, half an hour if one does not come
            self._meet(trainer)

        strategy.setup_environment = connect_and_meet  # type: ignore[method-assign]  # the one place before the data

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._meet(trainer)

    def _meet(self, trainer: Trainer) -> None:
        if trainer.world_size == 1 or self._companions is not None:
            return
        self._rank, self._size = trainer.global_rank, trainer.world_size
        companions = Companions(self._rank, self._size, self._follow)
        environment = trainer.strategy.cluster_environment  # type: ignore[attr-defined]  # every strategy of many has it
        meeting = companions.wait(environment.main_address) if self._rank == 0 else None
        meeting = trainer.strategy.broadcast(meeting)
        assert meeting is not None
        if self._rank != 0:
            companions.join(meeting)
        self._companions = companions

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._companions is not None:
            self._companions.leave()
            self._companions = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        companions, self._companions = self._companions, None
        if companions is None:
            return
        # The message may arrive a moment after the collective operation has failed.
        if isinstance(exception, RuntimeError):
            self._lost.wait(1)
        loss = self._loss(exception)
        if not self._lost.is_set():
            companions.leave(loss)
        if self._rank != 0:
            # Lightning's launcher kills the first process when another one ends with a status that is not 0.
            companions.first_ended.wait(PATIENCE)
            if loss is not None and companions.first_loss is not None and companions.first_loss.reason == loss.reason:
                raise Interrupted(loss.status)  # the first process says the same
        if self._lost.is_set():
            signals.check()

    def _loss(self, exception: BaseException) -> Loss | None:
        if isinstance(exception, Interrupted):
            return Loss(self._rank, exception.status, exception.reason) if exception.reason else None
        status = 2 if isinstance(exception, DeqoptError) else 1
        return Loss(self._rank, status, f"{type(exception).__name__}: {exception}")

    def _follow(self, loss: Loss) -> None:
        if not loss.reason and self._rank == (1 if loss.rank == 0 else 0):
            print(f"deqopt: process {loss.rank + 1} of {self._size} was lost, so all end", file=sys.stderr)
        self._lost.set()
        signals.end(Interrupted(loss.status))
        threading.Event().wait(PATIENCE)
        os._exit(loss.status)


@contextmanager
def _ending_with_parent() -> Iterator[None]:
    """Within the block, end this process as soon as its parent (the first process or a launcher) ends."""
    parent, over = os.getppid(), threading.Event()

    def watch() -> None:
        while not over.wait(1):
            if os.getppid() != parent:
                os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()
    try:
        yield
    finally:
        over.set()
