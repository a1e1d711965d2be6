"""Disks that are full, and folders that cannot be written."""

from __future__ import annotations

import os
import resource
from contextlib import ExitStack, suppress
from pathlib import Path

from deqopt.testing.faults.exceptions import at_most
from deqopt.testing.faults.forked import Shared
from deqopt.testing.faults.judgement import (
    LARGEST_STATUS,
    checkpoint_before_goes_on,
    goes_on,
    no_traceback,
    refused,
    whole,
)
from deqopt.testing.faults.moments import Moment
from deqopt.testing.faults.mounts import fill, set_read_only, small_disk
from deqopt.testing.faults.outcome import Outcome, expect
from deqopt.testing.faults.workbench import STEPS, Case

NO_FOLDERS = ("a file", "a loop of links", "a link to nothing", "a name that is too long", "no system of files")


def a_full_disk(case: Case) -> None:
    """No file can grow beyond some size: the run ends in one line, and the checkpoint before is whole and goes on."""
    size = case.bench.reference.joinpath("checkpoints", "last.ckpt").stat().st_size
    room = case.random.randint(0, size + size // 4)
    moment = Moment("on_train_batch_start", case.random.randint(1, STEPS), False)
    case.fault = f"files cannot grow beyond {room} bytes from {moment}"

    limit = moment.fault(lambda _: at_most(resource.RLIMIT_FSIZE, room))
    checkpoint_before_goes_on(case, case.command("fit", prepare=[limit]))


def a_small_disk(case: Case) -> None:
    """The same on a file system that is full, or that has become read-only."""
    fills = case.random.random() < 0.6
    size = case.bench.reference.joinpath("checkpoints", "last.ckpt").stat().st_size
    room = case.random.randint(0, 2 * size)
    moment = Moment("on_train_batch_start", case.random.randint(1, STEPS), False)
    case.root.mkdir()
    filler = case.root / "filler"

    spoil = moment.fault(lambda _: fill(filler, room) if fills else _close(case.root))

    with ExitStack() as stack:
        try:
            stack.enter_context(small_disk(case.root))
        except OSError as error:
            case.fault = f"no disk of its own could be made ({error.strerror}), so nothing was tried"
            return
        case.fault = f"the disk has {room} bytes left" if fills else "the disk becomes read-only"
        case.fault += f" {moment}"
        ended = case.command("fit", prepare=[spoil])
        filler.unlink(missing_ok=True) if fills else set_read_only(case.root, False)
        checkpoint_before_goes_on(case, ended)


def a_full_terminal(case: Case) -> None:
    """A run whose words cannot be written, because nobody listens or the disk is full, is not lost."""
    closed = case.random.random() < 0.5
    streams = case.random.choice(((1,), (2,), (1, 2)))
    kind = "whose reader has gone" if closed else "on a full disk"
    case.fault = f"{' and '.join('stdout' if one == 1 else 'stderr' for one in streams)} {kind}"

    def install(shared: Shared, rank: int) -> None:
        shared.fire()
        if closed:
            reading, writing = os.pipe()
            os.close(reading)
        else:
            writing = os.open("/dev/full", os.O_WRONLY)
        for stream in streams:
            os.dup2(writing, stream)

    ended = case.command("fit", prepare=[install])
    expect(ended.status <= LARGEST_STATUS, Outcome.OTHER, str(ended))
    if ended.status == 0 or case.checkpoints():
        goes_on(case)
    else:
        expect(not ended.steps, Outcome.LOST, f"no last.ckpt after step {ended.steps}")


def no_folder(case: Case) -> None:
    """A run whose folder cannot be made is refused in one line, before it begins."""
    kind = case.random.choice(NO_FOLDERS)
    case.fault = f"the folder of runs is {kind}"
    root = case.root
    if kind == "a file":
        root.write_text("")
    elif kind == "a loop of links":
        root.symlink_to(root)
    elif kind == "a link to nothing":
        root.symlink_to(case.folder / "missing" / "further")
    elif kind == "a name that is too long":
        root = case.folder / ("n" * 300)
    else:
        root = Path("/proc/deqopt")
    ended = case.command("fit", f"--trainer.default_root_dir={root}")
    if kind == "a link to nothing" and ended.status == 0:
        whole(case)
        return
    refused(ended)
    expect(not ended.steps, Outcome.OTHER, f"{ended.steps} steps were trained before it was noticed: {ended}")


def a_folder_that_closes(case: Case) -> None:
    """Where the folder of a run vanishes while it trains, it is made anew, or the run ends in one line."""
    moment = Moment("on_train_batch_end", case.random.randint(1, STEPS), True)
    case.fault = f"the folder of the run is replaced by a file {moment}"

    def close(_: object) -> None:
        os.rename(case.root, case.folder / "moved")
        case.root.write_text("")

    ended = case.command("fit", prepare=[moment.fault(close)])
    no_traceback(ended)
    expect(0 < ended.status <= LARGEST_STATUS, Outcome.SILENT, f"nothing could be saved, and nothing said: {ended}")
    case.root.unlink()
    os.rename(case.folder / "moved", case.root)
    if case.checkpoints():
        goes_on(case)


def _close(root: Path) -> None:
    """Make the disk read-only, as a failing one does: what is open for writing is closed to writing first."""
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if str(root) in os.readlink(entry):
                os.dup2(os.open(os.readlink(entry), os.O_RDONLY), int(entry.name))
    set_read_only(root, True)
