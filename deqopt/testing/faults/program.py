"""Draws faults, injects them, and says how each ended."""

from __future__ import annotations

import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from random import Random

import torch

from deqopt.registry import Group, find, plugins
from deqopt.tables import aligned
from deqopt.testing.faults.catalogue import CLASSES, FaultClass
from deqopt.testing.faults.outcome import MEANING, Broken, Outcome, Verdict
from deqopt.testing.faults.workbench import Case, Workbench

COLUMNS = tuple(Outcome)
# What a command would import on its way, so that its children need not.
IMPORTED = (
    "deqopt.command_line.joint_cli",
    "deqopt.testing.faults.tiny",
    "lightning.pytorch.loggers",
    "matplotlib.pyplot",
    "torch.utils.tensorboard",
)
BY_NAME = {one.name: one for one in CLASSES}


@dataclass(frozen=True)
class Summary:
    """All verdicts of a run of the harness."""

    seed: int
    verdicts: tuple[Verdict, ...]

    @property
    def fallen(self) -> list[Verdict]:
        return [one for one in self.verdicts if one.outcome is not Outcome.KEPT]

    def __str__(self) -> str:
        heads = ("class", "faults", *(one.value for one in COLUMNS), "slowest")
        rows = [self._row(name, [one for one in self.verdicts if one.name == name]) for name in self._names]
        rows.append(self._row("all", list(self.verdicts)))
        return aligned([heads, *rows])

    @property
    def _names(self) -> list[str]:
        ran = {one.name for one in self.verdicts}
        return [name for name in BY_NAME if name in ran]

    def _row(self, name: str, verdicts: Sequence[Verdict]) -> tuple[str, ...]:
        counts = Counter(one.outcome for one in verdicts)
        slowest = max((one.seconds for one in verdicts), default=0.0)
        return (name, str(len(verdicts)), *(str(counts[one]) for one in COLUMNS), f"{slowest:.1f} s")


def words_to_repeat(seed: int, verdict: Verdict) -> str:
    return f"python -m deqopt.testing.faults --seed {seed} --only {verdict.name} --case {verdict.case}"


def described(seed: int, verdict: Verdict) -> str:
    """A fallen case, for people."""
    lines = (f"{verdict.outcome.value}: {verdict.fault}", verdict.why, words_to_repeat(seed, verdict))
    return "\n    ".join(lines)


def legend(outcomes: Sequence[Outcome]) -> str:
    return "\n".join(f"{one.value}: {MEANING[one]}" for one in MEANING if one in outcomes)


def verdicts(plan: Sequence[tuple[FaultClass, int]], seed: int, jobs: int, limit: float) -> Iterator[Verdict]:
    """Inject all faults of a plan, some at a time; their verdicts as they come."""
    folder = Path(tempfile.mkdtemp(prefix="deqopt-faults-")).resolve()
    try:
        import_all()
        bench = Workbench(folder, limit)
        bench.prepare()
        judged = partial(verdict, bench, seed)
        if jobs == 1:
            yield from (judged(one.name, number) for one, number in plan)
            return
        with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
            waiting = [pool.submit(judged, one.name, number) for one, number in plan]
            yield from (done.result() for done in as_completed(waiting))
    finally:  # and no TemporaryDirectory, which the end of every child would remove
        shutil.rmtree(folder, ignore_errors=True)


def verdict(bench: Workbench, seed: int, name: str, number: int) -> Verdict:
    """Inject one fault and judge it; its folder is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-{number}-", dir=bench.folder))
    case = Case(bench, name, number, Random(f"{seed} {name} {number}"), folder)
    outcome, why = Outcome.KEPT, ""
    try:
        BY_NAME[name].inject(case)
    except Broken as broken:
        outcome, why = broken.outcome, str(broken)
    except Exception as error:  # of the harness itself, which must not be taken for a kept promise
        where = traceback.extract_tb(error.__traceback__)[-1]
        outcome, why = Outcome.OTHER, f"{type(error).__name__} at {where.name}:{where.lineno}: {error}"
    if case.canary.exists():
        outcome, why = Outcome.EXECUTED, "the canary was written"
    shutil.rmtree(folder, ignore_errors=True)
    return Verdict(name, number, case.fault, outcome, why, case.seconds, "\n".join(case.transcript))


def import_all() -> None:
    """Import what commands need, so that the children of this process need not."""
    torch.set_num_threads(1)
    for module in IMPORTED:
        import_module(module)
    for name in plugins(Group.TASKS):
        find(Group.TASKS, name).load()
