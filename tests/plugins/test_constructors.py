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


# -- ranges -----------------------------------------------------------------------------------------------------------

NOT_POSITIVE, NEGATIVE, BELOW_ONE, BELOW_TWO = (-1.0, 0.0), (-1,), (-1, 0), (0, 1)
OUTSIDE: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(("step_size", "lr", "eps", "longest", "coupling", "beta", "deviation"), NOT_POSITIVE),
    **dict.fromkeys(
        ("first_scale", "every_n_minutes", "Omniglot.weight", "Implicit.tol", "InputHeld.tol"), NOT_POSITIVE
    ),
    **dict.fromkeys(("tol", "atol", "restarts", "ridge", "lag", "decay", "warmup", "settle", "visits"), NEGATIVE),
    **dict.fromkeys(("products", "weight", "weight_decay", "sigma", "radius", "prior"), NEGATIVE),
    **dict.fromkeys(("distort_classes", "distort_images"), (-0.5, 5.5)),
    **dict.fromkeys(("max_nfe", "memory", "inner", "probes", "steps", "max_skipped"), BELOW_ONE),
    **dict.fromkeys(("latent", "components", "side", "count", "length", "Restorer.factor", "unroll"), BELOW_ONE),
    **dict.fromkeys(("test_images", "context", "features"), BELOW_ONE),
    **dict.fromkeys(("classes", "SuperResolution.factor", "SecantTracking.memory"), BELOW_TWO),
    "Implicit.max_nfe": (0, 4),
    **dict.fromkeys(("damping", "ratio"), (-0.5, 0.0, 1.5)),
    **dict.fromkeys(("momentum", "clean_weight"), (-0.5, 1.0)),
    "share": (0.0, 1.0),
    "betas": ((-0.5, 0.9), (0.9, 1.0)),  # type: ignore[dict-item]
}
"""Values outside the range of a setting, by its name; a setting of one class may have a range of its own."""

OF_DATA = {"batch_size", "workers", "shift", "attack_images", "ways", "shots", "queries", "train_ways", "train_queries"}
OF_DATA |= {"train_episodes", "val_episodes", "test_episodes", "radii"}
"""Their ranges are checked where the data is opened, or with other settings."""
SHAPES = {"size", "image_channels", "widths", "resolution", "kernel", "fid_features"}
"""What they may be depends on one another."""
ANY = {"angle", "algorithm_args", "schedule_args"}


def has_no_range(one: Argument) -> bool:
    return one.name in OF_DATA | SHAPES | ANY or "seed" in one.name


SETTINGS = [one for one in ARGUMENTS if {int, float} & {*one.types} and one.of not in OF_PROGRAMS]
RANGED = [one for one in SETTINGS if not has_no_range(one)]


@pytest.mark.parametrize(
    ("argument", "value"),
    [(one, value) for one in RANGED for value in OUTSIDE.get(str(one), OUTSIDE.get(one.name, ()))],
    ids=str,
)
def test_a_setting_outside_its_range_is_refused_by_name(argument: Argument, value: float) -> None:
    with pytest.raises(DeqoptError) as caught:
        argument.of(**required(argument.of), **{argument.name: value})
    message = str(caught.value)
    assert argument.name in message and "\n" not in message and (isinstance(value, tuple) or f"{value}" in message)


def test_every_setting_has_a_range_or_says_why_not() -> None:
    assert [str(one) for one in RANGED if str(one) not in OUTSIDE and one.name not in OUTSIDE] == []
    names = {one.name for one in RANGED} | {str(one) for one in RANGED}
    assert OUTSIDE.keys() <= names


def required(kind: type) -> dict[str, Any]:
    """Arguments without which a class cannot be made."""
    from deqopt_tasks.denoising.operators import Denoising

    return {"External": {"physics": Denoising()}}.get(kind.__name__, {})
