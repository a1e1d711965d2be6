"""The examples in the docstrings of the library run as printed."""

from __future__ import annotations

import doctest
from importlib import import_module
from typing import Any

import pytest
import torch

from deqopt import JointProblem
from paths import ROOT

MODULES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for file in sorted((ROOT / "deqopt").rglob("*.py"))
    if ">>> " in file.read_text()
]


def names_of_the_problem() -> dict[str, Any]:
    """What the example of a problem defines, with which those of solvers and adjoints begin."""
    names: dict[str, Any] = {"torch": torch, "JointProblem": JointProblem}
    (example,) = doctest.DocTestFinder(recurse=False).find(JointProblem, "JointProblem", globs=names)
    assert not doctest.DocTestRunner().run(example, clear_globs=False).failed
    return {**names, **example.globs}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    known = names_of_the_problem()
    given = {one: known[one] for one in ("torch", "weight", "problem", "z0", "x0")}
    outcome = doctest.testmod(import_module(name), extraglobs=given)
    assert outcome.attempted and not outcome.failed
