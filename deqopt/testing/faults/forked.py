"""Commands run in forked children of this process, which has imported everything once: a run in a fraction of a second.

The parent must never have run a backward pass, nor have threads: a fork copies neither.
"""

from __future__ import annotations

import atexit
import fcntl
import mmap
import os
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import NoReturn

LIMIT = 60.0
"""Seconds after which a command counts as hung; time in which it is ready and others have the CPU is not counted."""
PIPE_SIZE = 1 << 20
POLL = 0.02


class Slot(IntEnum):
    """What a child and its parent tell each other; 8 bytes each."""

    STARTED = 0
    STEPS = 1
    FIRED = 2
    STEPS_WHEN_FIRED = 3


class Shared:
    """Whole numbers in memory that a child and its parent share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def __getitem__(self, slot: Slot) -> int:
        return int(struct.unpack_from("q", self._memory, 8 * slot)[0])

    def __setitem__(self, slot: Slot, value: int) -> None:
        struct.pack_into("q", self._memory, 8 * slot, value)

    def fire(self) -> None:
        """Note that the fault happens now."""
        if not self[Slot.FIRED]:
            self[Slot.STEPS_WHEN_FIRED] = self[Slot.STEPS]
            self[Slot.FIRED] = 1


Prepare = Callable[[Shared, int], None]
"""Called in a child, with its rank, before the command: this is where faults are installed."""


@dataclass(frozen=True)
class Ended:
    """How a command ended, by rank.

    Attributes:
        statuses: as a shell shows them, 128 and the number of the signal for a process that one killed.
        steps: training steps that the first rank had finished.
        fired: whether the fault happened at all, and ``steps_when_fired`` what was finished by then.
        hung: whether it had to be killed.
    """

    statuses: tuple[int, ...]
    outputs: tuple[str, ...]
    errors: tuple[str, ...]
    steps: int
    fired: bool
    steps_when_fired: int
    seconds: float
    hung: bool

    @property
    def status(self) -> int:
        return self.statuses[0]

    @property
    def said(self) -> str:
        """All that all ranks wrote."""
        return "\n".join((*self.outputs, *self.errors))

    def __str__(self) -> str:
        last = [text.strip().splitlines()[-1:] for text in self.errors]
        words = "; ".join(line[0][:300] for line in last if line) or "nothing on stderr"
        return f"exit {', '.join(map(str, self.statuses))} after step {self.steps}: {words}"


@dataclass
class Running:
    """A command under way."""

    pids: list[int]
    shared: Shared
    pipes: list[tuple[int, int]]
    began: float = field(default_factory=time.monotonic)
    texts: list[tuple[bytearray, bytearray]] = field(init=False)
    statuses: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.texts = [(bytearray(), bytearray()) for _ in self.pids]

    @property
    def over(self) -> bool:
        """Whether all ranks have ended; reads what they wrote meanwhile."""
        for pipes, texts in zip(self.pipes, self.texts, strict=True):
            for pipe, text in zip(pipes, texts, strict=True):
                _drain(pipe, text)
        for pid in self.pids:
            if pid not in self.statuses:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    code = os.waitstatus_to_exitcode(status)
                    self.statuses[pid] = 128 - code if code < 0 else code
        return len(self.statuses) == len(self.pids)

    def send(self, number: int, ranks: Sequence[int]) -> None:
        """Send a signal to those ranks that still run."""
        for rank in ranks:
            if self.pids[rank] not in self.statuses:
                os.kill(self.pids[rank], number)

    def wait(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Wait for the time, the end or a condition; whether the end or the condition came."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if self.over or (until is not None and until()):
                return True
            time.sleep(POLL)
        return False

    @property
    def _counted(self) -> float:
        waited = sum(ready_seconds(pid) for pid in self.pids if pid not in self.statuses)
        return time.monotonic() - self.began - waited

    def ended(self, limit: float) -> Ended:
        """Wait until it is over, or end it."""
        while not self.over and self._counted < limit:
            time.sleep(POLL)
        hung = len(self.statuses) < len(self.pids)
        seconds = time.monotonic() - self.began
        for pid in self.pids:
            _kill_group(pid)
        self.wait(LIMIT)
        for pipe in (pipe for pipes in self.pipes for pipe in pipes):
            os.close(pipe)
        return Ended(
            statuses=tuple(self.statuses[pid] for pid in self.pids),
            outputs=tuple(out.decode(errors="replace") for out, _ in self.texts),
            errors=tuple(error.decode(errors="replace") for _, error in self.texts),
            steps=self.shared[Slot.STEPS],
            fired=bool(self.shared[Slot.FIRED]),
            steps_when_fired=self.shared[Slot.STEPS_WHEN_FIRED],
            seconds=seconds,
            hung=hung,
        )


def start(
    words: Sequence[str],
    folder: Path,
    prepare: Sequence[Prepare] = (),
    ranks: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Running:
    """Start ``deqopt WORD ...`` in a folder, in one process or in several that form a group of ranks."""
    shared = Shared()
    sys.stdout.flush()
    sys.stderr.flush()
    pids, pipes = [], []
    for rank in range(ranks):
        ends = [os.pipe(), os.pipe()]
        pid = os.fork()
        if pid == 0:
            _child(words, folder, prepare, rank, [end[1] for end in ends], shared, dict(environment or {}))
        for reading, writing in ends:
            os.close(writing)
            os.set_blocking(reading, False)
        pids.append(pid)
        pipes.append((ends[0][0], ends[1][0]))
    return Running(pids, shared, pipes)


def _child(
    words: Sequence[str],
    folder: Path,
    prepare: Sequence[Prepare],
    rank: int,
    ends: Sequence[int],
    shared: Shared,
    environment: Mapping[str, str],
) -> NoReturn:
    """A command as a process of its own would run it, to the end of the interpreter."""
    status = 1
    try:
        os.setpgid(0, 0)
        heed_signals()
        null = os.open(os.devnull, os.O_RDONLY)
        for descriptor, target in zip((null, *ends), range(3), strict=True):
            os.dup2(descriptor, target)
        for end in ends:
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
        os.chdir(folder)
        os.environ.update(environment)
        if "MASTER_PORT" in environment:
            os.environ["LOCAL_RANK"] = str(rank)
        for install in prepare:
            install(shared, rank)
        shared[Slot.STARTED] = 1
        status = _command(words)
    finally:
        os._exit(status)


def heed_signals() -> None:
    """As in a process that was started in the foreground: one in the background may ignore some."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _command(words: Sequence[str]) -> int:
    from deqopt.cli import console

    status, sys.argv = 0, ["deqopt", *words]
    try:
        console()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # what the interpreter does at its end
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except OSError:
        return 120  # as the interpreter does when it cannot write its last words
    return status


def ready_seconds(pid: int) -> float:
    """How long a process was ready to run while others had the CPU; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _drain(pipe: int, text: bytearray) -> None:
    try:
        while part := os.read(pipe, PIPE_SIZE):
            text += part
    except BlockingIOError:
        return


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
