"""The house rules: who may import whom, what the package holds, and what ``import deqopt`` gives."""

from __future__ import annotations

import ast
import configparser
import re
from pathlib import Path

import pytest

import deqopt
from paths import ROOT
from processes import python

CORE = "state problem feasible iteration memory equilibrium batch solvers fixed_point adjoints regularizers nn compare"
OUTSIDE = ("lightning", "jsonargparse", "matplotlib", "deqopt.task", "deqopt.module", "deqopt_tasks")


def imported_modules(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def sources(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def test_core_imports_neither_lightning_nor_a_task() -> None:
    imports = "\n".join(f"import deqopt.{name}" for name in CORE.split())
    program = f"import sys\n{imports}\nprint([m for m in {OUTSIDE} if m in sys.modules])"
    assert python("-c", program).stdout.strip() == "[]"


def test_the_framework_does_not_know_its_tasks() -> None:
    for file in sources("deqopt"):
        assert not any(module.split(".")[0] == "deqopt_tasks" for module in imported_modules(file)), file


def test_imports_have_no_circles() -> None:
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in sources("deqopt")
    }
    # the package's own __init__ imports lazily, and for the type checker
    edges = {
        name: {m for m in imported_modules(file) if m in modules and m != name}
        for name, file in modules.items()
        if name != "deqopt"
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name in done:
            return
        for child in edges.get(name, ()):
            # a package re-exports its modules, which may import each other directly
            if not name.startswith(f"{child}."):
                visit(child, (*path, name))
        done.add(name)

    for name in edges:
        visit(name, ())


def test_setup_lists_every_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    on_disk = {
        re.sub(r"^tasks\b", "deqopt_tasks", ".".join(file.parent.relative_to(ROOT).parts))
        for file in sources("deqopt", "tasks")
        if file.name == "__init__.py"
    }
    assert listed == on_disk


@pytest.mark.parametrize("file", sources("deqopt", "tasks", "tests"), ids=lambda file: str(file.relative_to(ROOT)))
def test_files_fit_in_the_head(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 480


# -- what ``import deqopt`` gives, and when ----------------------------------------------------------------------------


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
