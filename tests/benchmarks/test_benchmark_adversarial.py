"""The benchmark of adversarial training: that it trains and attacks what it says, and reports what it measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import adversarial, schedule
from benchmarks.adversarial_report import write


def test_the_rate_rises_and_falls() -> None:
    shares = [k / 1000 for k in range(1001)]
    rates = [schedule.shape(share) for share in shares]
    peak = rates.index(max(rates))
    assert shares[peak] == pytest.approx(schedule.WARM_UP) and rates[peak] == pytest.approx(1.0)
    assert rates[0] == pytest.approx(0.1) and rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize("method", ["joint", "unrolled"])
def test_a_run_leaves_its_marks(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(adversarial, "CURVE", (0.5, 1.0))
    words = ["--methods", method, "--seeds", "3", "--seconds", "0.5", "--images", "2", "--out", str(tmp_path)]
    adversarial.main(words)
    (path,) = tmp_path.glob("*.json")
    said = json.loads(path.read_text())
    first, last = said["marks"]
    assert (said["method"], said["seed"], said["images"], said["part"]) == (method, 3, 2, "test")
    assert 0.25 <= first["seconds"] <= last["seconds"] and last["seconds"] >= 0.5 and first["steps"] < last["steps"] + 1
    assert 0 <= last["robust"] <= last["clean"] <= 1
    assert adversarial.METHODS[method].label in capsys.readouterr().out
    written = path.read_bytes()
    adversarial.main(words)
    assert path.read_bytes() == written, "a run that is there is not run again"
    assert (tmp_path / "robustness.png").stat().st_size > 1000


def run(method: str, seed: int, budget: float, robust: float) -> dict[str, Any]:
    marks = [{"seconds": budget * share, "steps": 10, "clean": 0.9, "robust": robust * share} for share in (0.5, 1.0)]
    return {"method": method, "seed": seed, "budget": budget, "images": 50, "part": "test", "marks": marks}


def test_the_table_has_mean_and_range_of_the_seeds(tmp_path: Path) -> None:
    runs = [run("a", 0, 60, 0.5), run("a", 1, 60, 0.7), run("a", 0, 20, 0.4), run("b", 0, 60, 0.6)]
    for k, one in enumerate(runs):
        (tmp_path / f"{one['method']}-test-{k}.json").write_text(json.dumps(one))
    (tmp_path / "a-validation-0.json").write_text(json.dumps(run("a", 9, 60, 1.0)))
    rows = write(tmp_path, {"a": "first", "b": "second"}, radius=1.0).splitlines()[2:]
    assert rows == [
        "| first | 60 | 10 | 90.0 % (90.0 to 90.0) | 60.0 % (50.0 to 70.0) | 2 | 50 |",
        "| first | 20 | 10 | 90.0 % (90.0 to 90.0) | 40.0 % (40.0 to 40.0) | 1 | 50 |",
        "| second | 60 | 10 | 90.0 % (90.0 to 90.0) | 60.0 % (60.0 to 60.0) | 1 | 50 |",
    ]
    assert write(tmp_path / "empty", {}, radius=1.0).startswith("no test runs in")
