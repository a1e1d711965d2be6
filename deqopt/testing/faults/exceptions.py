"""Exceptions in a run, from its callbacks, its data and its workers; and what the system refuses it."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from deqopt.data.source import ImageSource
from deqopt.testing.faults.forked import Ended, Prepare, Shared
from deqopt.testing.faults.judgement import checkpoint_before_goes_on, failed, no_traceback, saved_and_goes_on, whole
from deqopt.testing.faults.moments import AROUND_STEPS, IN_A_STEP, Moment, drawn
from deqopt.testing.faults.outcome import Outcome, expect
from deqopt.testing.faults.workbench import IMAGES, STEPS, Case

RAISED: dict[str, Callable[[], BaseException]] = {
    "ENOSPC": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "elsewhere"),
    "EMFILE": lambda: OSError(errno.EMFILE, os.strerror(errno.EMFILE), "elsewhere"),
    "EIO": lambda: OSError(errno.EIO, os.strerror(errno.EIO), "elsewhere"),
    "MemoryError": MemoryError,
    "torch's allocator": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 1099511627776 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "a bug": lambda: ZeroDivisionError("a mistake in somebody's code"),
}
BUG = "a bug"
SPARE_DESCRIPTORS = 3


def an_exception(case: Case) -> None:
    """A run that raises is saved where it was; there is no traceback, unless it is a mistake in somebody's code."""
    kind = case.random.choice(sorted(RAISED))
    hooks = (*IN_A_STEP, *AROUND_STEPS) if case.random.random() < 0.8 else ()
    moment = drawn(case.random, STEPS, hooks)
    case.fault = f"{kind} raised {moment}"
    _judge(case, kind, case.command("fit", prepare=[raising(moment, kind)]))


def an_exception_in_the_data(case: Case) -> None:
    """The same when an image cannot be loaded, in the process or in a worker of its own."""
    kind = case.random.choice(sorted(RAISED))
    workers = case.random.choice((0, 0, 1))
    nth = case.random.randint(1, IMAGES)
    case.fault = f"{kind} raised by image {nth} that {'a worker' if workers else 'the process'} loads"

    def fail() -> None:
        raise RAISED[kind]()

    case.more = (f"--task.workers={workers}",)
    _judge(case, kind, case.command("fit", prepare=[_at_load(nth, fail)]))


def a_dead_worker(case: Case) -> None:
    """A data worker that the system kills ends the run in one line, saved where it was."""
    number = case.random.choice((signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM))
    nth = case.random.randint(1, IMAGES)
    case.fault = f"a data worker ends by {number.name} at image {nth}"

    def die() -> None:
        signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
        os.kill(os.getpid(), number)

    case.more = ("--task.workers=1",)
    _judge(case, "a dead worker", case.command("fit", prepare=[_at_load(nth, die, in_workers=True)]))


def no_descriptors(case: Case) -> None:
    """Where nothing more can be opened, a run ends in one line, and what was saved before goes on."""
    moment = Moment("on_train_batch_end", case.random.randint(1, STEPS - 1), True)
    spare = case.random.randint(0, SPARE_DESCRIPTORS)
    case.fault = f"only {spare} more files can be opened {moment}"

    def limit(_: object) -> None:
        lowest = os.dup(0)
        os.close(lowest)
        at_most(resource.RLIMIT_NOFILE, lowest + spare)

    checkpoint_before_goes_on(case, case.command("fit", prepare=[moment.fault(limit)]))


def no_memory(case: Case) -> None:
    """The same where no more memory can be had."""
    moment = Moment("on_train_batch_end", case.random.randint(1, STEPS - 1), True)
    spare = case.random.choice((0, 1 << 20, 8 << 20, 64 << 20))
    case.fault = f"only {spare >> 20} MiB more can be allocated {moment}"

    def limit(_: object) -> None:
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
        at_most(resource.RLIMIT_AS, pages * resource.getpagesize() + spare)

    expect(sys.platform == "linux", Outcome.OTHER, "limits of memory are tried on Linux only")
    checkpoint_before_goes_on(case, case.command("fit", prepare=[moment.fault(limit)]))


def at_most(what: int, most: int) -> None:
    """Limit what the process may use of a resource."""
    resource.setrlimit(what, (most, resource.getrlimit(what)[1]))


def raising(moment: Moment, kind: str) -> Prepare:
    """Raises what :data:`RAISED` has under that name when the moment comes."""

    def fail(_: object) -> None:
        raise RAISED[kind]()

    return moment.fault(fail)


def _at_load(nth: int, action: Callable[[], None], in_workers: bool = False) -> Prepare:
    """Acts when a process, or a worker, loads its nth image."""

    def install(shared: Shared, rank: int) -> None:
        loads, main, inner = 0, os.getpid(), ImageSource.__getitem__

        def load(source: ImageSource, index: int) -> Any:
            nonlocal loads
            loads += 1
            if loads == nth and (not in_workers or os.getpid() != main):
                shared.fire()
                action()
            return inner(source, index)

        ImageSource.__getitem__ = load  # type: ignore[method-assign]

    return install


def _judge(case: Case, kind: str, ended: Ended) -> None:
    if not ended.fired:
        expect(ended.status == 0, Outcome.OTHER, f"nothing was done to it, and it failed: {ended}")
        whole(case)
        return
    if kind != BUG:
        no_traceback(ended)
    if ended.status == 0:
        whole(case)
        return
    failed(ended)
    saved_and_goes_on(case, ended.steps_when_fired)
