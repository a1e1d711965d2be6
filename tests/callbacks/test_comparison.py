"""The callback that compares methods: each sample once, what is logged, said and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compared import ERROR, Compared, error
from deqopt.callbacks.comparison import ComparisonReport, index_of
from deqopt.errors import ProblemError
from reported import lines_said, rows_of


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is printed."""
    return lines_said(monkeypatch)


def test_every_method_is_scored_on_every_sample(tmp_path: Path, said: list[str]) -> None:
    task = Compared()
    figures = task.tested(tmp_path, logger=True)
    expected = task.errors(*(set(range(10)) - {2}))
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert figures["error_worst"] == pytest.approx(expected["error_zero"])
    rows = {row["method"]: row for row in rows_of(tmp_path, "tiny things")}
    assert list(rows) == ["ours", "zero", "Slow-half", "worst"]
    assert all(row["things"] == "10" and row["error_missing"] == "1" for row in rows.values())
    assert float(rows["ours"]["error"]) == pytest.approx(figures["error_ours"])
    assert 0.02 <= float(rows["Slow-half"]["seconds"]) < 0.5 and rows["worst"]["seconds"] == ""
    things = rows_of(tmp_path, "things")
    assert [one["index"] for one in things] == [str(index) for index in range(10)]
    assert things[2]["error_ours"] == "" and float(things[3]["error_zero"]) == pytest.approx(
        task.errors(3)["error_zero"]
    )
    assert all(1 <= float(one["nfe"]) <= 6 for one in things)
    assert (tmp_path / "lightning_logs/version_0/figures/tiny things.png").stat().st_size > 5000
    lines = said[0].splitlines()
    assert lines[:2] == ["Tiny things: 10 test things", "Means with 95 % intervals; differences are paired"]
    assert lines[-3:] == [
        "Note: error has no value for 1 of 10 things, which are left out of the mean",
        "Test 1, with a line that is longer than the screen is wide, so that it has to be",
        "broken",
    ]
    assert len(said) == 1 and max(map(len, lines)) <= 80


@pytest.mark.parametrize("repeated", [0, 3])
def test_samples_that_are_met_twice_count_once(repeated: int, tmp_path: Path, said: list[str]) -> None:
    task = Compared(samples=5, repeated=repeated, batch_size=3)
    figures = task.tested(tmp_path)
    assert {name: figures[name] for name in task.errors(0)} == pytest.approx(task.errors(0, 1, 3, 4))
    assert "5 test things" in said[0]


@pytest.mark.parametrize("most", [3, 4, 6, 100])
def test_only_the_first_samples_are_compared(most: int, tmp_path: Path, said: list[str]) -> None:
    task = Compared(most=most)
    figures = task.tested(tmp_path)
    expected = task.errors(*(set(range(min(most, 10))) - {2}))
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert f"{min(most, 10)} {'of 10 ' if most < 10 else ''}test things\n" in said[0]


@pytest.mark.filterwarnings("ignore:1 of 4 samples of a batch hold NaN")
def test_spoiled_samples_are_left_out_and_a_second_test_counts_anew(tmp_path: Path, said: list[str]) -> None:
    task = Compared(spoiled=[1], most=6)
    task.tested(tmp_path)
    task.y[1:] = 3.0
    figures = task.tested(tmp_path)
    assert "6 of 9 test things" in said[0] and "6 of 10 test things" in said[1]
    assert "Test 1," in said[0] and "Test 2," in said[1]
    assert figures["error_zero"] == pytest.approx((float(task.y[0].square().mean()) + 9 * 4) / 5)


def test_a_single_sample_has_no_interval(tmp_path: Path, said: list[str]) -> None:
    Compared(samples=1).tested(tmp_path, logger=True)
    assert "±" not in said[0] and "nan" not in said[0]
    assert [row["error_half_width"] for row in rows_of(tmp_path, "tiny things")] == [""] * 4


@pytest.mark.parametrize("most, count", [(None, 4), (3, 1)])
def test_a_trial_run_writes_nothing(most: int | None, count: int, tmp_path: Path, said: list[str]) -> None:
    assert "error_ours" in Compared(most=most).tested(tmp_path, fast_dev_run=True)
    assert f"Tiny things: {count} " in said[0] and not list(tmp_path.rglob("tiny things*"))


def test_a_dictionary_of_methods_is_enough(tmp_path: Path, said: list[str]) -> None:
    task = Compared(samples=4)
    task.report = ComparisonReport("plain", [ERROR], error, methods={"half": lambda batch: batch["y"] / 2})  # type: ignore[assignment]
    figures = task.tested(tmp_path)
    assert [name for name in figures if name.startswith("error")] == ["error_half"]
    assert "paired" not in said[0] and "minus" not in said[0]


@pytest.mark.parametrize("name", ["Ours", "ours"])
def test_methods_of_one_name_are_refused(name: str, tmp_path: Path) -> None:
    task = Compared()
    task.report = ComparisonReport("plain", [ERROR], error, task.ours, {name: lambda batch: batch["y"]})  # type: ignore[assignment]
    with pytest.raises(ProblemError, match="two methods are called 'ours': give them names of their own"):
        task.tested(tmp_path)


@pytest.mark.parametrize("batch", [{"y": torch.zeros(2)}, (torch.zeros(2), torch.zeros(2)), torch.zeros(2)])
def test_samples_without_numbers_are_refused(batch: Any) -> None:
    with pytest.raises(ProblemError, match=rf"a {type(batch).__name__} of the test has no index: give batches"):
        index_of(batch)


def test_scores_of_another_shape_are_refused(tmp_path: Path) -> None:
    task = Compared(batch_size=5)
    task.report = ComparisonReport("plain", [ERROR], lambda answer, batch: {"error": answer}, task.ours)  # type: ignore[assignment]
    with pytest.raises(ProblemError, match=r"error of 'ours' must be one number a sample, \(5,\), and has"):
        task.tested(tmp_path)
