"""Implementations that break the promises, each in its way, around the command: ``python fault_mutants.py`` prints what
the fault harness finds, as JSON.

In a script of its own, because the harness forks, and a process that has trained must not.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, product
from pathlib import Path
from random import Random
from typing import Any

import torch

import deqopt.cli
from deqopt.testing.faults.outcome import Outcome
from deqopt.testing.faults.poisoned_data import FILES
from deqopt.testing.faults.program import import_all, verdict
from deqopt.testing.faults.workbench import Workbench, changed

Main = Callable[[Sequence[str]], None]
SEED, TRIES, LIMIT = 5, 8, 10.0
sound: Main = deqopt.cli.main


def checkpoints() -> list[Path]:
    return sorted(Path().glob("runs/*/*/checkpoints/*.ckpt"))


def given(words: Sequence[str]) -> list[Path]:
    """The checkpoints that a command names or means."""
    named = [word.partition("=")[2] or words[k + 1] for k, word in enumerate(words) if word.startswith("--ckpt_path")]
    return [Path(name) for name in named if Path(name).is_file()] or (checkpoints() if named else [])


def after_a_failure(harm: Callable[[], object]) -> Main:
    def main(words: Sequence[str]) -> None:
        try:
            sound(words)
        except SystemExit as end:
            if end.code:
                harm()
            raise

    return main


def harms(harm: Callable[[Path], object]) -> Main:
    """Every checkpoint."""
    return after_a_failure(lambda: [harm(path) for path in checkpoints()])


def rewrites(change: Callable[[dict[str, Any]], object]) -> Main:
    """Every checkpoint, with something else in it."""

    def harm(path: Path) -> None:
        with changed(path) as content:
            change(content)

    return harms(harm)


def spoils(content: dict[str, Any]) -> None:
    next(iter(content["state_dict"].values()))[:] = torch.nan


def forgets(content: dict[str, Any]) -> None:
    """The moments of the optimiser, so that the run goes on as another."""
    for state in content["optimizer_states"][0]["state"].values():
        state["exp_avg"].zero_()


def swallows(words: Sequence[str]) -> None:
    try:
        sound(words)
    except SystemExit:
        return


def shows_tracebacks(words: Sequence[str]) -> None:
    try:
        sound(words)
    except SystemExit as end:
        if end.code:
            raise RuntimeError("a mistake") from end


def folders(words: Sequence[str]) -> list[Path]:
    """Those of images that a command names."""
    return [Path(word.partition("=")[2]) for word in words if word.startswith("--task.root=")]


def shows_raw_names(words: Sequence[str]) -> None:
    for folder in folders(words):
        print(*map(str, folder.glob("*")))
    sound(words)


def unpickles(words: Sequence[str]) -> None:
    readers = partial(torch.load, weights_only=False), lambda path: pickle.loads(path.read_bytes())
    for path, reader in product(given(words), readers):
        try:
            reader(path)
        except Exception as error:
            print(error)
    sound(words)


def foreign(words: Sequence[str]) -> list[Path]:
    """Files in these folders that are no images."""
    return [path for folder in folders(words) for path in folder.glob("zz_foreign*")]


def runs_postscript(words: Sequence[str]) -> None:
    """As Ghostscript does, which Pillow starts."""
    for path in foreign(words):
        if path.is_file() and path.stat().st_size and path.read_bytes()[:4] == b"%!PS":
            Path(path.read_text().partition("\n(")[2].partition(")")[0]).touch()
    sound(words)


def reads_all(words: Sequence[str]) -> None:
    """Opens whatever has the name of an image."""
    for path in foreign(words):
        if path.is_fifo():
            path.read_bytes()
    sound(words)


def shares_folders(words: Sequence[str]) -> None:
    sound(words)
    runs = sorted(Path().glob("runs/tinyimages/version_*"))
    for run in runs[1:]:
        shutil.rmtree(run, ignore_errors=True)


@dataclass(frozen=True)
class Mutant:
    """What is broken, the class of faults that shows it, how it is judged then, and which file shows it."""

    main: Main
    name: str
    outcome: Outcome
    file: str | None = None

    @property
    def cases(self) -> Sequence[int]:
        if self.file is None:
            return range(TRIES)
        drawn = (number for number in count() if foreign_file(self.name, number) == self.file)
        return [next(drawn) for _ in range(TRIES // 4)]


def foreign_file(name: str, number: int) -> str:
    """The kind of file that a case puts into a folder."""
    return Random(f"{SEED} {name} {number}").choice(sorted(FILES))


MUTANTS = {
    "loses": Mutant(harms(Path.unlink), "signal", Outcome.LOST),
    "tears": Mutant(harms(lambda path: path.write_bytes(path.read_bytes()[:1000])), "signal", Outcome.LOST),
    "rewinds": Mutant(rewrites(lambda content: content.update(global_step=0)), "signal", Outcome.LOST),
    "spoils": Mutant(rewrites(spoils), "bad-weights", Outcome.LOST),
    "forgets": Mutant(rewrites(forgets), "signal", Outcome.SILENT),
    "hangs": Mutant(after_a_failure(lambda: time.sleep(10 * LIMIT)), "exception", Outcome.HUNG),
    "swallows": Mutant(swallows, "bad-weights", Outcome.SILENT),
    "swallows signals": Mutant(swallows, "evaluation-signal", Outcome.OTHER),
    "shows tracebacks": Mutant(shows_tracebacks, "no-folder", Outcome.OTHER),
    "shows raw names": Mutant(shows_raw_names, "poisoned-folder", Outcome.OTHER, "colours in a name"),
    "unpickles": Mutant(unpickles, "pickled-checkpoint", Outcome.EXECUTED),
    "runs PostScript": Mutant(runs_postscript, "poisoned-folder", Outcome.EXECUTED, "PostScript"),
    "reads all": Mutant(reads_all, "poisoned-folder", Outcome.HUNG, "a pipe"),
    "shares folders": Mutant(shares_folders, "runs-together", Outcome.LOST),
}


def fate(bench: Workbench, name: str) -> str:
    """The outcome of the first case that finds the mutant."""
    mutant = MUTANTS[name]
    deqopt.cli.main = lambda: mutant.main(sys.argv[1:])  # type: ignore[assignment, misc]
    found = (verdict(bench, SEED, mutant.name, number).outcome for number in mutant.cases)
    try:
        return next((outcome.name for outcome in found if outcome is not Outcome.KEPT), Outcome.KEPT.name)
    finally:
        deqopt.cli.main = sound  # type: ignore[assignment]


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    os.chdir(folder)
    try:
        import_all()
        bench = Workbench(folder / "bench", LIMIT)
        bench.prepare()
        print(json.dumps({name: fate(bench, name) for name in sys.argv[1:] or MUTANTS}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
