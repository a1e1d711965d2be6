"""What to tell the user of an exception, in one line."""

from __future__ import annotations

import re
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from deqopt.errors import DeqoptError

# The last is what torch.save says of it.
NO_MEMORY = re.compile(r"bad_alloc|DefaultCPUAllocator|Cannot allocate memory|unexpected pos \d")
DEAD_WORKER = re.compile(r"DataLoader worker \(pid\(?s?\)?\)? .*(killed|exited)")
IN_WORKER = re.compile(r"Caught \w+ in DataLoader worker process")


def one_line(error: BaseException) -> str:
    """The text of an error in one line."""
    return " ".join(str(error).split())


def explanation(error: BaseException) -> str | None:
    """What to tell the user; None where the error is a bug and its traceback is wanted."""
    if isinstance(error, (DeqoptError, MisconfigurationException)) or _is_refused_by_lightning(error):
        return one_line(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or NO_MEMORY.search(str(error)):
        where = "the device" if isinstance(error, torch.OutOfMemoryError) else "this machine"
        return f"{where} is out of memory: give a smaller batch_size" + _in_brackets(error)
    if DEAD_WORKER.search(str(error)):
        return "a process that loads data ended, killed perhaps for want of memory" + _in_brackets(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    if isinstance(error, OSError) and IN_WORKER.match(str(error)):
        return str(error).strip().splitlines()[-1]
    if "loading state_dict" in str(error):
        first = re.split(r'(?<=[)\]"])[.,] ', one_line(error).partition(": ")[2])[0]
        return f"the checkpoint does not fit these settings, give those that it was trained with: {first}"
    return None if error.__cause__ is None else explanation(error.__cause__)


@contextmanager
def threads_explained() -> Iterator[None]:
    """Tell what the user can put right of exceptions in threads, such as TensorBoard's on a full disk, in one line."""
    before = threading.excepthook

    def explain(failure: threading.ExceptHookArgs) -> None:
        text = None if failure.exc_value is None else explanation(failure.exc_value)
        if text is None:
            before(failure)
        else:
            print(f"deqopt: {text}", file=sys.stderr)

    threading.excepthook = explain
    try:
        yield
    finally:
        threading.excepthook = before


def _in_brackets(error: BaseException) -> str:
    """The text of an error; of one in a data worker, whose text is a traceback, the last line."""
    lines = str(error).strip().splitlines()
    if not lines:
        return ""
    return f" ({lines[-1] if IN_WORKER.match(lines[0]) else one_line(error)[:200]})"


def _is_refused_by_lightning(error: BaseException) -> bool:
    """Whether Lightning itself found a value wrong, such as an option of the trainer."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, ValueError) and frames[-1].f_globals["__name__"].startswith("lightning.")
