"""The fault harness: what it draws and refuses, that it finds broken implementations, and that this one is sound."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from deqopt.testing.faults.__main__ import arguments, main
from deqopt.testing.faults.catalogue import CLASSES, plan
from deqopt.testing.faults.outcome import Outcome, Verdict
from deqopt.testing.faults.program import Summary, words_to_repeat
from fault_mutants import MUTANTS
from paths import SUPPORT
from processes import python

NEW_PROCESSES = {"start-signal", "launched-ranks"}
"""Classes whose cases import everything anew."""


# -- the harness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--count=0"], "--count must be at least 1"),
        (["--jobs=0"], "--jobs must be from 1"),
        (["--limit=nan"], "--limit must be larger than 0"),
        (["--case=3"], "exactly one --only CLASS"),
        (["--only=signal", "--only=exception", "--case=3"], "exactly one --only CLASS"),
        (["--only=signal", "--case=-1"], "a number from 0"),
        (["--only=sginal"], "invalid choice: 'sginal'"),
        (["--seed=x"], "invalid int value"),
    ],
    ids=str,
)
def test_options_are_checked(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        arguments(words)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_every_class_says_what_is_promised(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [one.name for one in CLASSES]
    assert all(len(line.partition(": ")[2]) > 30 for line in lines)
    assert len({one.name for one in CLASSES}) == len(CLASSES)


def test_every_class_comes_early_and_as_often_as_its_share_says() -> None:
    assert {one.name for one, _ in plan(CLASSES, len(CLASSES))} == {one.name for one in CLASSES}
    total = 2000
    drawn = Counter(one.name for one, _ in plan(CLASSES, total))
    shares = sum(one.share for one in CLASSES)
    for one in CLASSES:
        assert abs(drawn[one.name] - total * one.share / shares) <= 3, one.name
    numbers = [number for one, number in plan(CLASSES, total) if one is CLASSES[0]]
    assert numbers == list(range(len(numbers)))


def test_a_summary_counts_and_tells_how_to_repeat() -> None:
    def verdict(outcome: Outcome, case: int, name: str = "signal") -> Verdict:
        return Verdict(name, case, "SIGTERM", outcome, "", 1.0 + case, "")

    fallen = verdict(Outcome.LOST, 1)
    summary = Summary(7, (verdict(Outcome.KEPT, 0), fallen, verdict(Outcome.EXECUTED, 2, "exception")))
    assert [one.outcome for one in summary.fallen] == [Outcome.LOST, Outcome.EXECUTED]
    rows = {row.split()[0]: row.split()[1:] for row in str(summary).splitlines()[1:]}
    assert rows == {
        "signal": ["2", "1", "1", "0", "0", "0", "0", "2.0", "s"],
        "exception": ["1", "0", "0", "0", "1", "0", "0", "3.0", "s"],
        "all": ["3", "1", "1", "0", "1", "0", "0", "3.0", "s"],
    }
    assert words_to_repeat(7, fallen).endswith("--seed 7 --only signal --case 1")


# -- what it finds ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    done = python(SUPPORT / "fault_mutants.py", cwd=tmp_path_factory.mktemp("mutants"))
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_implementation_is_found(name: str, fates: dict[str, str]) -> None:
    assert fates[name] == MUTANTS[name].outcome.name


@pytest.mark.slow
def test_faults_leave_what_is_promised(tmp_path: Path) -> None:
    classes = [word for one in CLASSES if one.name not in NEW_PROCESSES for word in ("--only", one.name)]
    harness = "-m", "deqopt.testing.faults", "--seed=15", f"--count={len(CLASSES)}", "--jobs=2"
    done = python(*harness, *classes, cwd=tmp_path)
    assert f"all  {len(CLASSES)}  {len(CLASSES)}" in " ".join(done.stdout.split()).replace(" ", "  ")
