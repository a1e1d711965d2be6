"""What ``import deqopt`` gives, and when."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import deqopt
from paths import ROOT


def python(*words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-W", "error", *words]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_modules_are_there_on_first_use_and_not_before() -> None:
    program = (
        "import sys, deqopt\n"
        "names = dir(deqopt)\n"
        "assert not {'torch', 'lightning', 'numpy', 'yaml'} & set(sys.modules)\n"
        "print(deqopt.solvers.Tracking, deqopt.feasible.Box, deqopt.JointProblem, deqopt.nn.__name__)\n"
        "assert set(names) == set(dir(deqopt)), set(names) ^ set(dir(deqopt))\n"
    )
    outcome = python("-c", program)
    assert outcome.returncode == 0, outcome.stderr
    assert "Tracking" in outcome.stdout and "deqopt.nn" in outcome.stdout


def test_dir_names_what_there_is() -> None:
    assert {*deqopt.__all__, "solvers", "adjoints", "feasible", "testing", "nn"} <= set(dir(deqopt))
    for name in dir(deqopt):
        assert getattr(deqopt, name) is not None or name.startswith("__")


@pytest.mark.parametrize("name", ["nothing", "Tracking", "__wrapped__", "solvers2"])
def test_what_is_not_there_is_an_attribute_error(name: str) -> None:
    assert not hasattr(deqopt, name)


def test_the_package_is_the_command() -> None:
    outcome = python("-X", "importtime", "-m", "deqopt", "tasks")
    assert outcome.returncode == 0 and "celeba" in outcome.stdout
    imported = {line.rpartition("|")[2].strip() for line in outcome.stderr.splitlines()}
    assert not {"torch", "numpy", "yaml", "lightning"} & imported
    refused = python("-m", "deqopt", "taks")
    assert refused.returncode == 2 and refused.stderr.startswith("deqopt: error: unknown command 'taks': did you mean")
