"""Clauses on the settings of a solver, and on what it refuses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.problem import JointProblem
from deqopt.spec import spec
from deqopt.testing.rebuilding import can_be_imported, made_again
from deqopt.testing.report import clauses_of
from deqopt.testing.trial import Trial


def settings_are_a_frozen_dataclass(trial: Trial) -> Iterator[str]:
    """A solver is a frozen dataclass: all its settings are fields, nothing else is kept on it, and a copy is equal."""
    solver, kind = trial.solver, type(trial.solver)
    known = kind.__dataclass_fields__
    forgotten = [name for name in inspect.get_annotations(kind) if name not in known]
    if forgotten:
        yield f"{', '.join(forgotten)} of {kind.__name__} are no fields: decorate it with @dataclass(frozen=True)"
    extra = sorted(vars(solver).keys() - {field.name for field in fields(solver)})
    if extra:
        yield f"it has attributes that are no fields: {', '.join(extra)}; a solve remembers in its Memory"
    if replace(solver) != solver:
        yield "dataclasses.replace(solver) is not equal to it"


def a_checkpoint_can_describe_it(trial: Trial) -> Iterator[str]:
    """Its settings are plain values (numbers, strings, enums, tuples), from which the command line and a checkpoint
    make the same solver again."""
    solver = trial.solver
    again = made_again(solver)
    if not can_be_imported(type(solver)):
        yield f"{spec(solver)['class_path']} is another class"
    if again != solver:
        yield f"made again it is {again}, expected {solver}"


def settings_are_checked(trial: Trial) -> Iterator[str]:
    """Settings that cannot be meant raise ProblemError; a __post_init__ of its own calls super().__post_init__()."""
    for name, value in (("max_nfe", 0), ("tol", -1.0), ("atol", -1.0), ("restarts", -1)):
        yield from _refused(f"{name}={value}", partial(replace, trial.solver, **{name: value}))


def what_does_not_fit_is_refused(trial: Trial) -> Iterator[str]:
    """A problem or a start that does not keep its contract raises ProblemError instead of a wrong answer."""
    z, x = torch.zeros(2, 3, device=trial.device), torch.zeros(2, 4, device=trial.device)

    def cell(z: Tensor, x: Tensor) -> Tensor:
        return 0.5 * z

    def objective(z: Tensor, x: Tensor) -> Tensor:
        return (z - 1).square().sum(1) + x.square().sum(1)

    unfit: dict[str, tuple[Callable[..., Any], Callable[..., Any], Tensor, Tensor]] = {
        "a cell that changes the shape of z": (lambda z, x: z[:, :2], objective, z, x),
        "an objective that is summed over the batch": (cell, lambda z, x: z.sum(), z, x),
        "z0 of another batch size than x0": (cell, objective, torch.cat([z, z]), x),
        "an x0 of integers": (cell, objective, z, x.long()),
    }
    for what, (f, J, z0, x0) in unfit.items():
        yield from _refused(what, partial(trial.short.solve, JointProblem(f, J), z0, x0))


def _refused(what: str, action: Callable[[], object]) -> Iterator[str]:
    try:
        action()
    except ProblemError:
        return
    except Exception as error:
        yield f"{what}: raised {type(error).__name__}, expected ProblemError"
    else:
        yield f"{what}: accepted, expected ProblemError"


CLAUSES = clauses_of(__name__)
