"""Every setting of every strategy is checked by the parser: a value of a wrong type is refused, not trained with."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from jsonargparse import ArgumentError, ArgumentParser

import deqopt.adjoints
import deqopt.fixed_point
import deqopt.regularizers
import deqopt.solvers
from deqopt.adjoints import Adjoint
from deqopt.fixed_point import FixedPointSolver
from deqopt.regularizers import Regularizer
from deqopt.solvers import Descent, JointSolver

BASES = {
    Adjoint: deqopt.adjoints,
    FixedPointSolver: deqopt.fixed_point,
    Regularizer: deqopt.regularizers,
    JointSolver: deqopt.solvers,
    Descent: deqopt.solvers,
}
SETTINGS = [
    pytest.param(base, kind, field.name, id=f"{kind.__name__}.{field.name}")
    for base, package in BASES.items()
    for kind in (getattr(package, name) for name in package.__all__)
    if isinstance(kind, type) and issubclass(kind, base) and not getattr(kind, "__abstractmethods__", None)
    for field in fields(kind)
]


@pytest.mark.parametrize(("base", "kind", "setting"), SETTINGS)
def test_a_value_of_a_wrong_type_is_refused(base: type, kind: type, setting: str) -> None:
    parser: Any = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "part", instantiate=False)
    with pytest.raises(ArgumentError, match=setting):
        parser.parse_args([f"--part={kind.__module__}.{kind.__qualname__}", f"--part.{setting}=no such value"])
