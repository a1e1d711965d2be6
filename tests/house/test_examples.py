"""The examples in the docstrings of the library run as printed, and every public class has one."""

from __future__ import annotations

import doctest
import inspect
from enum import Enum
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
FOLDERS = "adjoints callbacks compare data feasible fixed_point nn regularizers solvers testing"
LIBRARY = "deqopt", *(f"deqopt.{name}" for name in FOLDERS.split())


def public_classes() -> dict[str, type]:
    """What the packages of the library export, but for exceptions and enums."""
    exported = {(package, name) for package in LIBRARY for name in import_module(package).__all__}
    values = {f"{package}.{name}": getattr(import_module(package), name) for package, name in sorted(exported)}
    return {
        name: one for name, one in values.items() if inspect.isclass(one) and not issubclass(one, (Enum, Exception))
    }


PUBLIC = public_classes()


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
    outcome = doctest.testmod(import_module(name), extraglobs=given, optionflags=doctest.ELLIPSIS)
    assert outcome.attempted and not outcome.failed


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_class_has_an_example(name: str) -> None:
    assert len(PUBLIC) > 60 and ">>> " in (PUBLIC[name].__doc__ or "")
