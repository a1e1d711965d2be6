"""What settings can reach: no parameter that takes anything, and no number that is not finite."""

from __future__ import annotations

import math
from typing import Any

import pytest
from torch import Tensor

from constructors import Argument, arguments, is_plain, is_untyped
from deqopt.errors import DeqoptError
from deqopt.trust import packages

ARGUMENTS = arguments()


def test_the_walk_finds_what_is_there() -> None:
    names = {one.of.__name__ for one in ARGUMENTS}
    assert names >= {
        *("JointModule", "RunCheckpoint", "Optimization"),
        *("CelebA", "Cifar", "Denoising", "Omniglot"),
        *("Tracking", "SecantTracking", "JointAnderson", "JointBroyden", "Bilevel", "Adam", "LBFGS", "Damped"),
        *("Implicit", "Phantom", "JacobianFree", "Unrolled", "InputHeld"),
        *("JacobianPenalty", "SpectralPenalty", "External", "Inpainting", "GaussianKernel", "RandomBoxes", "LatentFit"),
    }
    assert len(ARGUMENTS) > 150


@pytest.mark.parametrize("argument", ARGUMENTS, ids=str)
def test_data_reaches_no_parameter_that_takes_any_class_or_function(argument: Argument) -> None:
    for kind in argument.types:
        assert not is_untyped(kind), argument
        if not is_plain(kind) and kind is not Tensor:
            assert isinstance(kind, type), (argument, kind)  # no Callable, type[...] or the like
            assert kind.__module__.partition(".")[0] in packages(), (argument, kind)


def test_data_can_make_no_tensor() -> None:
    """Parameters that are tensors are for programs: no class of a package that data may name is one."""
    below = [Tensor]
    for kind in below:
        below += kind.__subclasses__()
        assert kind.__module__.partition(".")[0] not in packages(), kind


OF_PROGRAMS = {one.of for one in ARGUMENTS if Tensor in one.types}
NUMBERS = [one for one in ARGUMENTS if float in one.types and one.of not in OF_PROGRAMS]
NEVER = ("RunCheckpoint.every_n_minutes",)
"""Where infinity says so."""


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan], ids=str)
@pytest.mark.parametrize("argument", NUMBERS, ids=str)
def test_numbers_are_finite(argument: Argument, number: float) -> None:
    several = {"betas": (number, number), "kernel": [[number, 1.0]], "radii": [0.5, number]}
    several |= {"algorithm_args": {"eps": number}, "schedule_args": {"gamma": number}}
    given: dict[str, Any] = {argument.name: several.get(argument.name, number)}
    if argument.name == "atol":
        given["tol"] = 1e-3
    if str(argument) in NEVER and number == math.inf:
        argument.of(**given)
        return
    with pytest.raises(DeqoptError) as caught:
        argument.of(**required(argument.of), **given)
    assert "\n" not in str(caught.value)


def required(kind: type) -> dict[str, Any]:
    """Arguments without which a class cannot be made."""
    from deqopt_tasks.denoising.operators import Denoising

    return {"External": {"physics": Denoising()}}.get(kind.__name__, {})
