"""Signals to a run: at random and at chosen moments, once and twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from random import Random

from deqopt.testing.faults.forked import LIMIT, Prepare, Running, Slot, heed_signals, ready_seconds
from deqopt.testing.faults.judgement import goes_on, no_traceback, saved, saved_and_goes_on, status_of, whole
from deqopt.testing.faults.moments import Moment, drawn
from deqopt.testing.faults.outcome import Broken, Outcome, expect
from deqopt.testing.faults.workbench import STEPS, Act, Case

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)
USUAL_SECONDS, LONG = 2.0, 2 * LIMIT
EVALUATION = {"validate": "validation", "test": "test", "predict": "predict"}
IMPORT_SECONDS = 12.0


def a_signal(case: Case) -> None:
    """One to ``fit``: saved where it was, or, if it was SIGKILL, at the last validation; and it goes on from there."""
    number = case.random.choice(NUMBERS)
    prepare, act, when = _sent(case.random, number)
    case.fault = f"{number.name} to fit, {when}"
    ended = case.command("fit", prepare=prepare, act=act)
    no_traceback(ended)
    if not ended.fired or ended.status == 0:
        expect(ended.status == 0, Outcome.OTHER, f"nothing was done to it, and it failed: {ended}")
        whole(case)
        return
    expect(ended.status == status_of(number), Outcome.OTHER, f"exit status, expected {status_of(number)}: {ended}")
    certain = ended.steps_when_fired if number != signal.SIGKILL else 0
    saved_and_goes_on(case, certain)


def two_interrupts(case: Case) -> None:
    """Ctrl-C twice: the second ends at once what the first asked for, and whatever is saved is whole."""
    gap = case.random.choice((0.0, 0.001, 0.01, 0.1, 0.3))
    prepare, act, when = _sent(case.random, signal.SIGINT)
    case.fault = f"SIGINT to fit, {when}, and again after {gap} s"

    def twice(running: Running) -> None:
        if act is not None:
            act(running)
        running.wait(LONG, lambda: bool(running.shared[Slot.FIRED]))
        running.wait(gap)
        running.send(signal.SIGINT, [0])

    ended = case.command("fit", prepare=prepare, act=twice)
    no_traceback(ended)
    expect(ended.status in (0, status_of(signal.SIGINT)), Outcome.OTHER, f"exit status, expected 130: {ended}")
    if case.checkpoints():
        goes_on(case)


def a_signal_to_an_evaluation(case: Case) -> None:
    """``validate``, ``test`` and ``predict`` heed signals too."""
    name = case.random.choice(sorted(EVALUATION))
    number = case.random.choice(NUMBERS)
    hook = case.random.choice(("start", "batch_start", "batch_end", "epoch_end", "end"))
    moment = Moment(f"on_{EVALUATION[name]}_{hook}", 1, case.random.random() < 0.5)
    case.fault = f"{number.name} to {name}, {moment}"
    case.copied()
    ended = case.command(name, "--ckpt_path=last", prepare=[sent_at(moment, number)])
    no_traceback(ended)
    expect(ended.fired, Outcome.OTHER, f"{moment} never came: {ended}")
    late = hook.endswith("end") and ended.status == 0
    expect(late or ended.status == status_of(number), Outcome.OTHER, f"expected {status_of(number)}: {ended}")
    saved(case, STEPS)


def a_signal_while_it_starts(case: Case) -> None:
    """While Python imports, nothing has to be saved: the process ends, soon."""
    number = case.random.choice(NUMBERS)
    delay = case.random.uniform(0.05, IMPORT_SECONDS / 2)
    case.fault = f"{number.name} to a new process after {delay:.2f} s"
    began = time.monotonic()
    with new_process(case) as process:
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        status = ended_within(process, case.bench.limit)
    case.seconds = max(case.seconds, time.monotonic() - began)
    status = 128 - status if status < 0 else status
    expect(status in (0, status_of(number)), Outcome.OTHER, f"exit {status}, expected {status_of(number)}")
    if case.checkpoints():
        goes_on(case)


def new_process(case: Case, *words: str) -> subprocess.Popen:
    """``deqopt fit`` on the tiny task, as a process that leads a group; what it says goes to the file ``said``."""
    settings = ("--config", str(case.bench.config), f"--trainer.default_root_dir={case.root}")
    with (case.folder / "said").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "deqopt", "fit", *settings, *words],
            cwd=case.folder,
            stdout=said,
            stderr=said,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=heed_signals,
        )


def ended_within(process: subprocess.Popen, limit: float) -> int:
    """The exit status of a process that must end in so many seconds, as :data:`LIMIT` counts them."""
    began = time.monotonic()
    while time.monotonic() - began - ready_seconds(process.pid) < limit:
        try:
            return process.wait(1.0)
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    raise Broken(Outcome.HUNG, "the process did not end")


def _sent(random: Random, number: signal.Signals) -> tuple[list[Prepare], Act | None, str]:
    """A way to send a signal: from within at a chosen moment, or from outside at a random time."""
    if random.random() < 0.3:
        delay = random.uniform(0.0, USUAL_SECONDS)
        return [], lambda running: _later(running, delay, number), f"{delay:.3f} s after its start"
    moment = drawn(random, STEPS)
    return [sent_at(moment, number)], None, str(moment)


def _later(running: Running, delay: float, number: signal.Signals) -> None:
    running.wait(LONG, lambda: bool(running.shared[Slot.STARTED]))
    if not running.wait(delay):
        running.shared.fire()
        running.send(number, [0])


def sent_at(moment: Moment, number: signal.Signals) -> Prepare:
    """The process sends itself a signal."""
    return moment.fault(lambda _: os.kill(os.getpid(), number))
