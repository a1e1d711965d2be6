"""What is promised, asked of a command that has ended."""

from __future__ import annotations

import signal
from pathlib import Path

from deqopt.testing.faults.forked import Ended
from deqopt.testing.faults.outcome import Broken, Outcome, expect
from deqopt.testing.faults.workbench import STEPS, Case, differences, loaded

TRACEBACK = "Traceback (most recent call last)"
ERROR = "deqopt: error: "
REFUSED, LARGEST_STATUS = 2, 125
CONTROL = {*map(chr, range(32)), "\x7f", *map(chr, range(0x80, 0xA0))} - set("\n\t\r")
BIDI = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")


def no_traceback(ended: Ended) -> None:
    """Nothing but words for people."""
    if TRACEBACK in ended.said:
        last = ended.said.rpartition(TRACEBACK)[2].strip().splitlines()[-1]
        raise Broken(Outcome.OTHER, f"a traceback, exit {ended.statuses}: {last[:300]}")


def refused(ended: Ended) -> None:
    """One line that says what is wrong, and exit status 2."""
    no_traceback(ended)
    lines = [line for line in ended.said.splitlines() if line.startswith(ERROR)]
    expect(ended.status == REFUSED and len(lines) == 1, Outcome.OTHER, f"not refused in one line: {ended}")


def failed(ended: Ended) -> None:
    """A status of its own, and not one that tells of a signal."""
    expect(0 < ended.status <= LARGEST_STATUS, Outcome.OTHER, f"an exit status that is no failure: {ended}")


def shown_safely(ended: Ended) -> None:
    """Names of files are shown without characters that steer a terminal."""
    raw = sorted({hex(ord(one)) for one in ended.said if one in CONTROL | BIDI})
    expect(not raw, Outcome.OTHER, f"control characters reach the terminal: {', '.join(raw)}")


def status_of(number: signal.Signals) -> int:
    """What a shell shows for a process that ended because of a signal."""
    return 128 + number


def whole(case: Case, expected: Path | None = None) -> None:
    """The newest ``last.ckpt`` is the end of the undisturbed run, bit for bit."""
    found = case.checkpoints()
    expect(bool(found), Outcome.LOST, "the run ended well and left no last.ckpt")
    content, reference = loaded(found[0]), loaded(expected or case.bench.reference / "checkpoints" / "last.ckpt")
    different = differences(content, reference)
    if "global_step" in different:
        why = f"last.ckpt is of step {content['global_step']} in place of {reference['global_step']}"
        raise Broken(Outcome.LOST, why)
    expect(not different, Outcome.SILENT, f"not the undisturbed run: {', '.join(different)} differ")


def saved(case: Case, at_least: int, at_most: int = STEPS) -> int:
    """There is a ``last.ckpt`` of these steps; its step."""
    found = case.checkpoints()
    expect(bool(found), Outcome.LOST, f"no last.ckpt although step {at_least} was finished")
    step = int(loaded(found[0])["global_step"])
    expect(at_least <= step, Outcome.LOST, f"last.ckpt is of step {step} although step {at_least} was finished")
    expect(step <= at_most, Outcome.SILENT, f"last.ckpt is of step {step}, and {at_most} were taken")
    return step


def goes_on(case: Case) -> None:
    """``--ckpt_path last`` takes the run to the end of the undisturbed one, bit for bit."""
    found = case.checkpoints()
    if found and loaded(found[0])["global_step"] == STEPS:
        whole(case)
        return
    ended = case.command("fit", "--ckpt_path=last")
    expect(ended.status == 0, Outcome.LOST, f"the run cannot be resumed: {ended}")
    whole(case)


def saved_and_goes_on(case: Case, at_least: int) -> None:
    """What is saved is at least so far, can be read, and goes on; where nothing had to be saved, nothing need be."""
    if at_least or case.checkpoints():
        saved(case, at_least)
        goes_on(case)


def checkpoint_before_goes_on(case: Case, ended: Ended) -> None:
    """A run that could not save ended in one line; what the first validation had saved goes on."""
    no_traceback(ended)
    if ended.status == 0:
        whole(case)
        return
    failed(ended)
    if ended.steps_when_fired > STEPS // 2:
        expect(bool(case.checkpoints()), Outcome.LOST, "no last.ckpt of the first validation")
    if case.checkpoints():
        goes_on(case)
