"""Signals that ask a process to end: noted where a safe point will come, raised at once where none will."""

from __future__ import annotations

import os
import signal
import sys
import threading
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

HEEDED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
"""Ctrl-C; what clusters, containers and ``kill`` send; a terminal that is closed; Ctrl-Break on Windows."""

Handler = Callable[[int, FrameType | None], object] | int | None


class Interrupted(SystemExit):
    """The process is asked to end.

    Args:
        status: exit status.
        reason: in a few words; empty where the user knows it already.
    """

    def __init__(self, status: int, reason: str = "") -> None:
        super().__init__(status)
        self.status, self.reason = status, reason

    @staticmethod
    def by(number: int) -> Interrupted:
        """By a signal, with the conventional status: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return Interrupted(128 + number, f"ended by {signal.Signals(number).name}")


class Signals:
    """What was received since the handlers were installed; there is one object a process, ``signals``.

    A signal is raised as :class:`Interrupted` where the code stands. Where :attr:`deferred` is true, the first one is
    only noted, for code that reaches a safe point soon and calls :meth:`check` there; the second one is raised. Code
    that swallows exceptions swallows no signal: the next :meth:`check` raises it again.

    Example:
        >>> with signals.heeded():
        ...     signals.check()
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferred = False
        self._end: Interrupted | None = None
        self._before: dict[int, Handler] = {}

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Handle signals within the block; nested blocks are one. Only the main thread can: elsewhere nothing changes.

        Signals that the process was started to ignore, such as SIGHUP under ``nohup``, stay ignored.
        """
        if self._before or threading.current_thread() is not threading.main_thread():
            yield
            return
        self.received, self.deferred, self._end = None, False, None
        self._before = {number: signal.getsignal(number) for number in HEEDED}
        try:
            for number, handler in self._before.items():
                if handler is not signal.SIG_IGN:
                    signal.signal(number, self.receive)
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            self._before = {}

    @contextmanager
    def deadly(self) -> Iterator[None]:
        """Let signals kill the process within the block: for a call that returns to Python after minutes only."""
        heeded = [number for number in self._before if signal.getsignal(number) == self.receive]
        try:
            for number in heeded:
                signal.signal(number, signal.SIG_DFL)
            yield
        finally:
            for number in heeded:
                signal.signal(number, self.receive)

    def ignore(self) -> None:
        """Ignore signals for good, also after the block that heeds them."""
        self._before = {}
        for number in HEEDED:
            signal.signal(number, signal.SIG_IGN)

    def check(self) -> None:
        """Raise :class:`Interrupted` where a signal was received."""
        if self._end is not None:
            raise self._end
        if self.received is not None:
            raise Interrupted.by(self.received)

    def end(self, end: Interrupted) -> None:
        """Have the main thread raise ``end``, as soon as it runs Python; to be called in another thread."""
        self._end, self.deferred = end, False
        interrupt_main(signal.SIGTERM)

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """The handler of all signals."""
        first, self.received = self.received is None, number
        if self._end is not None or not (first and self.deferred):
            self.check()
        # Not print: the signal may have come in the midst of one, whose buffer cannot be entered twice.
        name = signal.Signals(number).name
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{name}: ending after this step\n".encode())


signals = Signals()


def leave_to_parent(worker: int = 0) -> None:
    """Have a data worker survive the first signal of each kind, as its parent does; a ``worker_init_fn``.

    A signal to the whole group of processes, such as Ctrl-C, would otherwise take the data from the batch that the
    parent is finishing. The parent ends its workers.
    """
    seen: set[int] = set()

    def receive(number: int, frame: FrameType | None) -> None:
        if number in seen:
            os._exit(128 + number)
        seen.add(number)

    for number in HEEDED:
        signal.signal(number, receive)
