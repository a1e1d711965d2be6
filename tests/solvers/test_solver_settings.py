"""Settings of solvers and adjoints that cannot be meant: each is refused with its name and what would be right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deqopt.adjoints import Implicit, InputHeld, JacobianFree, Phantom
from deqopt.errors import ProblemError
from deqopt.fixed_point import Anderson, Broyden, Damped
from deqopt.solvers import LBFGS, PGD, Adam, Bilevel, JointAnderson, JointBroyden, SecantTracking, Tracking

Kind = Callable[..., Any]
LOOPS: tuple[Kind, ...] = (Damped, Anderson, Broyden, JointAnderson, JointBroyden, Tracking, SecantTracking, Bilevel)
MIXING: tuple[Kind, ...] = (Anderson, Broyden, JointAnderson, JointBroyden)
# setting -> whose, values that are refused, and with what
RANGES: dict[str, tuple[tuple[Kind, ...], tuple[float, ...], str]] = {
    "max_nfe": ((*LOOPS, InputHeld), (0, -3), "at least 1"),
    "tol": (LOOPS, (-1e-3, math.nan), "0 or larger"),
    "atol": (LOOPS, (-1.0,), "0 or larger"),
    "restarts": (LOOPS, (-1,), "0 or larger"),
    "history_size": ((*MIXING, LBFGS), (0,), "at least 1"),
    "damping": ((*MIXING, Damped, Phantom), (0.0, -0.1, 1.5), r"in \(0, 1\]"),
    "ridge": ((Anderson, JointAnderson), (-1e-8,), "0 or larger"),
    "step_size": ((JointAnderson, JointBroyden, Tracking, Phantom, JacobianFree), (0.0, -1.0), "larger than 0"),
    "lr": ((PGD, Adam, LBFGS), (0.0, -1.0, math.nan), "larger than 0"),
    "eps": ((Adam,), (0.0,), "larger than 0"),
    "longest": ((LBFGS,), (0.0,), "larger than 0"),
    "inner": ((Tracking,), (0,), "at least 1"),
    "warmup": ((Tracking,), (-1,), "0 or larger"),
    "settle": ((Tracking,), (-1,), "0 or larger"),
    "lag": ((Tracking,), (-0.1,), "0 or larger"),
    "decay": ((Tracking,), (-1.0,), "0 or larger"),
    "momentum": ((Tracking,), (1.0, -0.1), r"in \[0, 1\)"),
    "coupling": ((SecantTracking,), (0.0,), "larger than 0"),
    "steps": ((Phantom,), (0,), "at least 1"),
    "restart": ((Implicit,), (0,), "at least 1"),
}
OTHERS: list[tuple[Kind, dict[str, Any], str]] = [
    (SecantTracking, {"history_size": 1}, "history_size must be at least 2, got 1"),
    (Implicit, {"max_nfe": 4}, "max_nfe must be at least 5, got 4"),
    (Implicit, {"tol": 0.0}, r"tol must be larger than 0, got 0\.0"),
    (InputHeld, {"tol": 0.0}, r"tol must be larger than 0, got 0\.0"),
    (Damped, {"atol": 1e-3, "tol": 0.0}, "atol needs a tol larger than 0"),
    (JointAnderson, {"step_size": math.nan}, "step_size must be a finite number, got nan"),
    (JointBroyden, {"damping": (1.0, 0.5)}, "one number or three, for z, mu and x; got 2"),
    (JointBroyden, {"damping": (1.0, 0.5, 0.0)}, r"damping must be in \(0, 1\], got 0.0"),
    (Bilevel, {"max_nfe": 28}, "never move x: with inner.max_nfe = 12 .* 14 .* at least 29, got 28"),
    (Bilevel, {"max_nfe": 40, "inner": Anderson(max_nfe=18)}, "inner.max_nfe = 18 .* 20 .* at least 41, got 40"),
    (Adam, {"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
    (Adam, {"betas": (0.9,)}, "betas must be two numbers"),
    (Tracking, {"max_nfe": 5}, r"never move x: .* inner \+ settle.* here 5; got 5"),
    (Tracking, {"max_nfe": 12, "warmup": 8}, "larger than inner.*warmup.* here 12; got 12"),
    (SecantTracking, {"max_nfe": 4}, "SecantTracking would never move x"),
]


def refusals() -> Iterator[tuple[Kind, dict[str, Any], str]]:
    for name, (kinds, values, right) in RANGES.items():
        for kind in kinds:
            for value in values:
                yield kind, {name: value}, f"{name} must be {right}, got {value}"
    yield from OTHERS


@pytest.mark.parametrize(("kind", "setting", "message"), [*refusals()])
def test_settings_that_cannot_be_meant(kind: Kind, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        kind(**setting)
