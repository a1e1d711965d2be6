"""Two ranks of one run: signals to one, to the first, to both; one that dies, raises or meets bad data."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from deqopt.testing.faults.exceptions import RAISED, raising
from deqopt.testing.faults.forked import LIMIT, Ended, Prepare, Running, Slot
from deqopt.testing.faults.judgement import no_traceback, saved, status_of
from deqopt.testing.faults.moments import IN_A_STEP, Moment
from deqopt.testing.faults.numbers import PASSING, VALUES
from deqopt.testing.faults.outcome import Outcome, expect
from deqopt.testing.faults.signals import ended_within, new_process
from deqopt.testing.faults.workbench import EPOCHS, STEPS, Case, loaded

RANKS = 2
TOGETHER = STEPS // RANKS
TWO = ("--trainer.strategy=ddp", f"--trainer.devices={RANKS}")
RECEIVERS = {"the first rank": (0,), "the second rank": (1,), "both ranks": (0, 1)}
LAUNCHED_LIMIT = 120.0


def a_signal(case: Case) -> None:
    """SIGTERM, SIGINT or SIGHUP to one rank or to all ends all, saved where they were; the run goes on from there."""
    number = case.random.choice((signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    receivers = case.random.choice(sorted(RECEIVERS))
    step, gap = case.random.randint(1, TOGETHER - 1), case.random.uniform(0, 0.1)
    case.fault = f"{number.name} to {receivers} {gap:.3f} s after step {step}"

    def act(running: Running) -> None:
        _at_step(running, step, gap)
        running.shared.fire()
        running.send(number, RECEIVERS[receivers])

    ended = case.command("fit", *TWO, ranks=RANKS, act=act)
    no_traceback(ended)
    expected = status_of(number)
    good = all(status in (0, expected) for status in ended.statuses) or ended.status == expected
    expect(good and (ended.status != 0 or not any(ended.statuses)), Outcome.OTHER, f"expected {expected}: {ended}")
    _saved_and_goes_on(case, ended, ended.steps_when_fired)


def a_death(case: Case) -> None:
    """A rank that is killed ends the others in time, in one line; the checkpoint before goes on."""
    rank = case.random.randrange(RANKS)
    step, gap = case.random.randint(1, TOGETHER - 1), case.random.uniform(0, 0.1)
    case.fault = f"SIGKILL to rank {rank} {gap:.3f} s after step {step}"

    def act(running: Running) -> None:
        _at_step(running, step, gap)
        running.shared.fire()
        running.send(signal.SIGKILL, [rank])

    ended = case.command("fit", *TWO, ranks=RANKS, act=act)
    no_traceback(ended)
    survivor = ended.statuses[1 - rank]
    finished = ended.steps >= TOGETHER and survivor == 0
    expect(finished or 0 < survivor <= 128 + signal.SIGTERM, Outcome.OTHER, f"how the other ended: {ended}")
    certain = EPOCHS and TOGETHER // EPOCHS if ended.steps_when_fired > TOGETHER // EPOCHS else 0
    _saved_and_goes_on(case, ended, certain)


def an_exception(case: Case) -> None:
    """A rank that raises ends the others in time, in one line; what is saved goes on."""
    rank, kind = case.random.randrange(RANKS), case.random.choice(sorted(set(RAISED) - {"a bug"}))
    moment = Moment(case.random.choice(IN_A_STEP), case.random.randint(1, TOGETHER), case.random.random() < 0.5)
    case.fault = f"{kind} raised in rank {rank} {moment}"
    ended = case.command("fit", *TWO, ranks=RANKS, prepare=[_in_rank(rank, raising(moment, kind))])
    no_traceback(ended)
    expect(all(ended.statuses) or not ended.fired, Outcome.OTHER, f"all ranks should fail: {ended}")
    certain = TOGETHER // EPOCHS if ended.steps_when_fired > TOGETHER // EPOCHS else 0
    _saved_and_goes_on(case, ended, certain)


def bad_numbers(case: Case) -> None:
    """A number in one rank that is not finite is left out, or the step is, by both alike."""
    rank = case.random.randrange(RANKS)
    place, name = case.random.choice(sorted(PASSING)), case.random.choice(sorted(VALUES))
    step = case.random.randint(1, TOGETHER)
    case.fault = f"{name} for {place} of rank {rank} in step {step}"
    ended = case.command("fit", *TWO, ranks=RANKS, prepare=[_in_rank(rank, PASSING[place](VALUES[name], step))])
    no_traceback(ended)
    expect(not any(ended.statuses), Outcome.LOST, f"one bad step ended the run: {ended}")
    content = loaded(_newest(case))
    largest = max(value.abs().max().item() for value in content["state_dict"].values())
    expect(math.isfinite(largest) and largest < 1e6, Outcome.SILENT, f"weights of {largest:.1e}")


def launched(case: Case) -> None:
    """The same for ranks that Lightning starts: a signal to the group, or to the first alone, saves the run."""
    number = case.random.choice((signal.SIGTERM, signal.SIGINT))
    whole_group = case.random.random() < 0.5
    case.fault = f"{number.name} to {'the group' if whole_group else 'the first'} of two launched ranks"
    began = time.monotonic()
    endless = ("--trainer.max_epochs=100000", "--trainer.check_val_every_n_epoch=100000")
    with new_process(case, *TWO, *endless) as process:
        try:
            _wait_for(lambda: _logged(case.root) > 3 or process.poll() is not None)
            begun = _logged(case.root) - 1
            if process.poll() is None:
                (os.killpg if whole_group else os.kill)(process.pid, number)
            status = ended_within(process, case.bench.limit)
        finally:
            _kill(process.pid)
    case.seconds = max(case.seconds, time.monotonic() - began)
    text = (case.folder / "said").read_text()
    status = 128 - status if status < 0 else status
    case.transcript.append(f"{text}\nexit {status}")
    expect(status == status_of(number), Outcome.OTHER, f"exit {status}: {' '.join(text.splitlines()[-1:])}")
    saved(case, max(begun - 1, 1), at_most=10**9)


def _at_step(running: Running, step: int, gap: float) -> None:
    """Wait until the first rank has finished that step, and a moment longer."""
    running.wait(2 * LIMIT, lambda: running.shared[Slot.STEPS] >= step and bool(running.shared[Slot.STARTED]))
    running.wait(gap)


def _in_rank(rank: int, prepare: Prepare) -> Prepare:
    return lambda shared, this: prepare(shared, this) if this == rank else None


def _saved_and_goes_on(case: Case, ended: Ended, at_least: int) -> None:
    if not at_least and not case.checkpoints():
        return
    step = saved(case, at_least, at_most=TOGETHER)
    if step < TOGETHER:
        again = case.command("fit", "--ckpt_path=last", *TWO, ranks=RANKS)
        expect(not any(again.statuses), Outcome.LOST, f"the run cannot be resumed: {again}")
        last = loaded(_newest(case))["global_step"]
        expect(last == TOGETHER, Outcome.LOST, f"the resumed run ended at step {last} of {TOGETHER}")


def _newest(case: Case) -> Path:
    found: Sequence[Path] = case.checkpoints()
    expect(bool(found), Outcome.LOST, "no last.ckpt")
    return found[0]


def _logged(root: Path) -> int:
    """Lines of the log of the first run."""
    return sum(len(path.read_text().splitlines()) for path in root.glob("*/version_0/metrics.csv"))


def _wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + LAUNCHED_LIMIT
    while time.monotonic() < limit and not condition():
        time.sleep(0.1)


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
