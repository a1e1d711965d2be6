"""Runs that start at the same time."""

from __future__ import annotations

import re

from deqopt.testing.faults.forked import Ended, Running, start
from deqopt.testing.faults.judgement import no_traceback
from deqopt.testing.faults.moments import count_steps
from deqopt.testing.faults.outcome import Outcome, expect
from deqopt.testing.faults.workbench import Case, differences, loaded

MOST = 4


def runs_together(case: Case) -> None:
    """Every run has a folder of its own, and is the run that it would have been alone."""
    count = case.random.randint(2, MOST)
    case.fault = f"{count} runs started at once"
    words = ["fit", "--config", str(case.bench.config), f"--trainer.default_root_dir={case.root}"]
    running: list[Running] = [start(words, case.folder, [count_steps]) for _ in range(count)]
    ended: list[Ended] = [one.ended(case.bench.limit * count) for one in running]
    case.seconds = max(one.seconds for one in ended)
    for one in ended:
        expect(not one.hung, Outcome.HUNG, str(one))
        no_traceback(one)
        expect(one.status == 0, Outcome.LOST, f"one of them failed: {one}")
    kept = [found[1] for one in ended if (found := re.search(r"This run is kept in (.+)", one.outputs[0]))]
    expect(len(set(kept)) == count, Outcome.LOST, f"{count} runs are kept in {len(set(kept))} folders")
    reference = loaded(case.bench.reference / "checkpoints" / "last.ckpt")
    for folder in kept:
        different = list(differences(loaded(case.folder / folder / "checkpoints" / "last.ckpt"), reference))
        expect(not different, Outcome.SILENT, f"not the run it would have been alone: {', '.join(different)} differ")
        rows = (case.folder / folder / "metrics.csv").read_text().splitlines()
        alone = (case.bench.reference / "metrics.csv").read_text().splitlines()
        expect(len(rows) == len(alone), Outcome.LOST, f"metrics.csv has {len(rows)} lines in place of {len(alone)}")
