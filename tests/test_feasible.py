"""Feasible sets: what makes a projection a projection, for every set, precision and distance."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.feasible import Box, Everywhere, FeasibleSet, Intersection, L2Ball, L2BallInBox, LinfBall

SAMPLES, SHAPE = 7, (2, 3)


def centres() -> Tensor:
    return torch.linspace(-2, 2, SAMPLES * 6, dtype=torch.float64).reshape(SAMPLES, *SHAPE)


# Every set may be asked for the samples `rows` alone; per-sample centres are picked with them.
SETS: dict[str, Callable[[Any], FeasibleSet]] = {
    "everywhere": lambda rows: Everywhere(),
    "box": lambda rows: Box(-0.5, 1.0),
    "box_of_tensors": lambda rows: Box(torch.tensor([-1.0, -0.5, 0.0]), torch.tensor([[0.5], [2.0]])),
    "half_space_box": lambda rows: Box(0.0, float("inf")),
    "l2": lambda rows: L2Ball(1.5),
    "l2_point": lambda rows: L2Ball(0.0),
    "l2_centre": lambda rows: L2Ball(0.7, torch.full(SHAPE, 0.3)),
    "l2_centres": lambda rows: L2Ball(0.7, centres()[rows]),
    "linf": lambda rows: LinfBall(0.4),
    "linf_point": lambda rows: LinfBall(0.0, centres()[rows]),
    "linf_centres": lambda rows: LinfBall(0.4, centres()[rows]),
    "l2_in_box": lambda rows: L2BallInBox(1.2, -0.4, 0.9),
    "l2_in_boxes": lambda rows: L2BallInBox(1.2, -centres()[rows].abs() / 4, centres()[rows].abs() / 3),
    "l2_point_in_box": lambda rows: L2BallInBox(0.0, -0.4, 0.9),
    "ball_and_box": lambda rows: Intersection((L2Ball(1.2), Box(-0.4, 0.9))),
    "centred_ball_and_box": lambda rows: Intersection((L2Ball(1.6, centres()[rows]), Box(-1.5, 1.5))),
    "two_balls": lambda rows: Intersection((L2Ball(1.0), L2Ball(1.0, torch.full(SHAPE, 0.5)))),
    "three": lambda rows: Intersection((L2Ball(1.0), Box(0.0, 1.0), LinfBall(0.3, torch.full(SHAPE, 0.2)))),
    "one": lambda rows: Intersection((L2Ball(1.0),)),
}
ALL = list(range(SAMPLES))
PRECISION = {torch.float32: 1e-6, torch.float64: 1e-9}
SCALES = [0.1, 1.0, 30.0]


def points(scale: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return (scale * torch.randn(SAMPLES, *SHAPE, dtype=torch.float64)).to(dtype)


def slack(name: str, dtype: torch.dtype) -> float:
    """Dykstra stops at 1e-7 of the norm; the rest is rounding."""
    return PRECISION[dtype] * 4 + (2e-6 if isinstance(SETS[name](ALL), Intersection) else 0)


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", SETS)
def test_projection(name: str, scale: float, dtype: torch.dtype) -> None:
    """Feasible, idempotent, and the nearest point: the variational inequality holds against feasible points."""
    one, x = SETS[name](ALL), points(scale, dtype)
    projected = one.project(x)
    assert projected.shape == x.shape and projected.dtype == dtype
    near = slack(name, dtype)
    assert one.distance(projected).max() < 1e-6
    assert (one.project(projected) - projected).abs().max() < near
    away = (x - projected).flatten(1)
    for _ in range(20):
        other = one.project(points(1.0, dtype))
        inner = (away * (other - projected).flatten(1)).sum(1)
        assert (inner <= near * (1 + away.norm(dim=1)) * (1 + (other - projected).flatten(1).norm(dim=1))).all()


@pytest.mark.parametrize("name", SETS)
def test_feasible_points_stay(name: str) -> None:
    one = SETS[name](ALL)
    start = one.project(points(3.0))
    inside = start + 1e-3 * (one.project(points(0.3)) - start)
    assert (one.project(inside) - inside).abs().max() < slack(name, torch.float64)


@pytest.mark.parametrize("name", [name for name in SETS if name != "everywhere"])
def test_far_points_are_moved(name: str) -> None:
    one, x = SETS[name](ALL), -points(30.0).abs()
    assert (one.distance(x) > 1).all()
    assert torch.allclose(one.distance(x), (x - one.project(x)).flatten(1).norm(dim=1))


@pytest.mark.parametrize("name", SETS)
def test_samples_do_not_see_each_other(name: str) -> None:
    x = points(2.0)
    together = SETS[name](ALL).project(x)
    hurt = x.clone()
    hurt[3] = torch.nan
    beside_nan = SETS[name](ALL).project(hurt)
    for i in ALL:
        alone = SETS[name]([i]).project(x[i : i + 1])
        assert (alone[0] - together[i]).abs().max() < slack(name, torch.float64)
        if i != 3:
            assert (beside_nan[i] - together[i]).abs().max() < slack(name, torch.float64)


BALLS = {
    "l2": (L2Ball, lambda x: x.flatten(1).norm(dim=1)),
    "linf": (LinfBall, lambda x: x.flatten(1).abs().amax(1)),
}


@pytest.mark.parametrize("radius", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("name", BALLS)
def test_far_points_land_on_the_sphere(name: str, radius: float) -> None:
    kind, norm = BALLS[name]
    x = points(50.0)
    assert torch.allclose(norm(kind(radius).project(x)), torch.full((SAMPLES,), radius, dtype=torch.float64))
    offset = kind(radius, centres()).project(x) - centres()
    assert torch.allclose(norm(offset), torch.full((SAMPLES,), radius, dtype=torch.float64))
    assert torch.equal(kind(1e6).project(x), x)


@pytest.mark.parametrize("name", BALLS)
def test_the_origin_and_the_centre_stay(name: str) -> None:
    kind, _ = BALLS[name]
    origin = torch.zeros(2, 3)
    assert torch.equal(kind(0.0).project(origin), origin)
    assert torch.equal(kind(0.0, origin + 2).project(origin + 2), origin + 2)


def test_intersection_of_two_known_sets() -> None:
    """The unit disc and the half plane x >= 0.6: the corner is (0.6, 0.8)."""
    both = Intersection((L2Ball(1.0), Box(torch.tensor([0.6, -9.0]), 9.0)))
    x = torch.tensor([[0.0, 5.0], [0.0, 0.0], [9.0, 0.0], [0.7, 0.1], [-50.0, 40.0]], dtype=torch.float64)
    nearest = torch.tensor([[0.6, 0.8], [0.6, 0.0], [1.0, 0.0], [0.7, 0.1], [0.6, 0.8]], dtype=torch.float64)
    assert torch.allclose(both.project(x), nearest, atol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_the_ball_in_a_box_is_their_intersection(scale: float) -> None:
    """What Dykstra's algorithm finds slowly."""
    low, high = -centres()[ALL].abs() / 4, centres()[ALL].abs() / 3
    x = points(scale)
    found = L2BallInBox(0.8, low, high).project(x)
    dykstra = Intersection((L2Ball(0.8), Box(low, high)), sweeps=20_000, tol=1e-13).project(x)
    assert torch.allclose(found, dykstra, atol=1e-7 * max(1, scale))
    assert (found.flatten(1).norm(dim=1) <= 0.8 + 1e-14).all() and (found >= low).all() and (found <= high).all()


def test_dykstra_is_not_alternating_projection() -> None:
    """Where alternating projections end at another point of the intersection."""
    sets = (L2Ball(1.0), Box(torch.tensor([0.2, -9.0]), 9.0))
    x = torch.tensor([[-1.0, 2.0]], dtype=torch.float64)
    alternating = x
    for _ in range(1000):
        for one in sets:
            alternating = one.project(alternating)
    nearest = Intersection(sets).project(x)
    assert (x - nearest).norm() < (x - alternating).norm() - 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L2Ball(-1.0), "L2Ball: radius must be 0 or larger, got -1.0"),
        (lambda: LinfBall(-0.1), "LinfBall: radius must be 0 or larger, got -0.1"),
        (lambda: L2Ball(float("nan")), "L2Ball: radius must be 0 or larger, got nan"),
        (lambda: Box(1.0, 0.0), "Box is empty: low must not be above high"),
        (lambda: Box(torch.zeros(3), torch.tensor([1.0, -1.0, 1.0])), "Box is empty"),
        (lambda: L2BallInBox(-1.0, -1.0, 1.0), "L2BallInBox: radius must be 0 or larger, got -1.0"),
        (lambda: L2BallInBox(1.0, 0.1, 1.0), "L2BallInBox: the box must hold the origin"),
        (lambda: L2BallInBox(1.0, -1.0, torch.tensor([1.0, -0.1])), "low must be <= 0 and high >= 0"),
        (lambda: Intersection(()), "Intersection needs at least one set"),
        (lambda: Intersection((L2Ball(1.0), Box(2.0, 3.0))).project(torch.ones(2, 3)), "no point in common"),
        (
            lambda: Intersection((L2Ball(0.1, torch.tensor([[0.0], [9.0]])), Box(-1.0, 1.0))).project(torch.ones(2, 1)),
            "no point in common, at least for one sample",
        ),
    ],
)
def test_sets_that_cannot_be_meant(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        make()
