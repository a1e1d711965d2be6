"""What ``import deqopt`` gives, and when."""

from __future__ import annotations

import pytest

import deqopt
from processes import python


def test_modules_are_there_on_first_use_and_not_before() -> None:
    program = """
import sys, deqopt
names = dir(deqopt)
assert not {'torch', 'lightning', 'numpy', 'yaml'} & set(sys.modules)
print(deqopt.solvers.Tracking, deqopt.feasible.Box, deqopt.JointProblem, deqopt.nn.__name__)
assert set(names) == set(dir(deqopt)), set(names) ^ set(dir(deqopt))
"""
    said = python("-W", "error", "-c", program).stdout
    assert "Tracking" in said and "deqopt.nn" in said


def test_dir_names_what_there_is() -> None:
    assert {*deqopt.__all__, "solvers", "adjoints", "feasible", "testing", "nn"} <= set(dir(deqopt))
    for name in dir(deqopt):
        assert getattr(deqopt, name) is not None or name.startswith("__")


@pytest.mark.parametrize("name", ["nothing", "Tracking", "__wrapped__", "solvers2"])
def test_what_is_not_there_is_an_attribute_error(name: str) -> None:
    assert not hasattr(deqopt, name)


def test_the_package_is_the_command() -> None:
    outcome = python("-W", "error", "-X", "importtime", "-m", "deqopt", "tasks")
    assert "celeba" in outcome.stdout
    imported = {line.rpartition("|")[2].strip() for line in outcome.stderr.splitlines()}
    assert not {"torch", "numpy", "yaml", "lightning"} & imported
    refused = python("-W", "error", "-m", "deqopt", "taks", status=2)
    assert refused.stderr.startswith("deqopt: error: unknown command 'taks': did you mean")
