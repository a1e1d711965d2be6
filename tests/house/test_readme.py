"""What the README says, done: its code runs as printed, its files exist."""

from __future__ import annotations

import re
import sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from command import column, succeeded
from deqopt import JointProblem
from deqopt.testing import check_task
from paths import ROOT
from processes import python

README = (ROOT / "README.md").read_text()


def blocks_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


BLOCKS = blocks_of(ROOT / "README.md")


def test_the_library_example_finds_feasible_optima(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)  # the README's own text
    equilibrium, W = names["eq"], names["W"]
    assert bool(equilibrium.converged.all()), capsys.readouterr().out
    assert float(equilibrium.x.detach().norm(dim=1).max()) <= 2.0 + 1e-6
    assert float(W.grad.norm()) > 0


@pytest.mark.slow
def test_the_task_of_your_own_is_short_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = BLOCKS[1]
    assert len(source.splitlines()) <= 50
    (tmp_path / "sensors.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    command = re.search(r"PYTHONPATH=\. deqopt (fit --task sensors\.Sensors (?:.*\\\n)*.*)", README)
    assert command is not None
    quiet = "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.max_epochs=8"  # not all 20
    run = succeeded(*command[1].replace("\\\n", " ").split(), *quiet).run
    errors = column(run, "val/mse")
    assert run == Path("runs/sensors/version_0") and errors[-1] < 0.5 * errors[0]
    sys.modules.pop("sensors", None)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:configs|docs|docker|deqopt|tasks)/[\w./]*", README))))
def test_files_that_the_readme_names_exist(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_page_of_a_task_is_called_as_the_second_name_of_the_task() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    tasks = [line.split(" = ") for line in setup["options.entry_points"]["deqopt.tasks"].strip().splitlines()]
    names: dict[str, list[str]] = {}
    for name, target in tasks:
        names.setdefault(target, []).append(name)
    for name, second in names.values():
        page = (ROOT / "docs" / f"{second}.md").read_text()
        assert f"The task `{second}`, also called `{name}`, " in page


@pytest.mark.slow
def test_the_page_on_extending_runs_from_top_to_bottom() -> None:
    blocks = blocks_of(ROOT / "docs" / "extending.md")
    assert "class ArrowHurwicz(JointSolver)" in blocks[0] and len(blocks[0].splitlines()) <= 15
    assert "check_solver(ArrowHurwicz(" in "".join(blocks), "which raises where a clause is broken"
    names: dict[str, Any] = {"__name__": "__main__"}
    exec("\n".join(blocks), names)
    equilibrium, solved, point = names["eq"], names["solved"], names["point"]
    assert bool(solved.converged.all())
    (slope,) = torch.autograd.grad(point.z.sum(), names["gain"])
    sine = torch.sin(names["gain"] * point.z)
    assert torch.allclose(slope, (-point.z * sine / (1 + names["gain"] * sine)).sum(), rtol=1e-3)
    one = names["ArrowHurwicz"](max_nfe=5).solve(
        JointProblem(lambda z, x: names["gain"] * z + x, lambda z, x: (z - 1).square().sum(1)),
        torch.zeros(2, 3),
        torch.ones(2, 3),
        adjoint=names["OneMoreStep"](),
    )
    assert torch.allclose(torch.autograd.grad(one.z.sum(), names["gain"])[0], one.z.sum())
    assert bool(equilibrium.converged.all())
    assert float((equilibrium.x.sum(1) - 1).abs().max()) < 1e-5
    assert float(equilibrium.x.min()) >= 0
    assert float(names["StateSize"]().penalty(names["problem"], equilibrium)) > 0


@pytest.mark.slow
def test_the_page_on_extending_has_strict_types(tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text("\n".join(blocks_of(ROOT / "docs" / "extending.md")))
    flags = ["--strict", "--config-file=", "--follow-imports=silent", "--ignore-missing-imports"]
    cache = f"--cache-dir={ROOT / '.mypy_cache' / 'pages'}"
    (tmp_path / "deqopt_tasks").symlink_to(ROOT / "tasks")  # mypy does not follow an editable installation
    python("-m", "mypy", *flags, cache, tmp_path / "page.py", cwd=ROOT, MYPYPATH=f"{ROOT}:{tmp_path}")


def test_the_task_of_your_own_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says that it writes no predictions, for which it needs no data."""
    (tmp_path / "sensors_checked.py").write_text(BLOCKS[1])
    monkeypatch.syspath_prepend(tmp_path)
    report = check_task(import_module("sensors_checked").Sensors())
    assert set(report.skipped) == {"predictions_are_written"}
    sys.modules.pop("sensors_checked")
