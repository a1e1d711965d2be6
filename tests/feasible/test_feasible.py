"""Feasible sets: what makes a projection a projection, for every set, precision and distance."""

from collections.abc import Callable

import pytest
import torch

from deqopt.errors import ProblemError
from deqopt.feasible import Box, FeasibleSet, Intersection, L2Ball, L2BallInBox, LinfBall
from set_catalogue import ALL, BALLS, PRECISION, SAMPLES, SCALES, SETS, SWEPT, Hidden, centres, points, slack


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", SETS)
def test_projection(name: str, scale: float, dtype: torch.dtype) -> None:
    """Feasible, idempotent, and the nearest point: the variational inequality holds against feasible points."""
    if name in SWEPT and dtype == torch.float32 and scale > 10:
        pytest.skip("the sweeps may warn: corrections of 70 times the set leave few digits of single precision")
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


# -- scales -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1.0, 1e15, 1e30])
@pytest.mark.parametrize("name", ["l2", "linf", "l2_centre", "l2_in_box", "known", "disc"])
def test_sets_of_any_size(name: str, scale: float, dtype: torch.dtype) -> None:
    """Point and set scaled together: the projection is scaled by the same."""
    center = torch.tensor([0.3, -0.2, 0.1, 0.0, 0.5, -0.1], dtype=torch.float64)
    sets: dict[str, Callable[[float], FeasibleSet]] = {
        "l2": lambda s: L2Ball(0.7 * s),
        "linf": lambda s: LinfBall(0.7 * s),
        "l2_centre": lambda s: L2Ball(0.7 * s, center * s),
        "l2_in_box": lambda s: L2BallInBox(0.7 * s, -0.3 * s, 0.4 * s),
        "known": lambda s: Intersection((L2Ball(0.7 * s, center * s), Box(-0.3 * s, 0.4 * s))),
        "disc": lambda s: Intersection((L2Ball(0.7 * s, center * s), L2Ball(0.6 * s))),
    }
    x = 2 * torch.randn(4, 6, dtype=torch.float64)
    want = sets[name](1.0).project(x)
    found = sets[name](scale).project((x * scale).to(dtype)).double() / scale
    assert (found - want).abs().max() < 20 * torch.finfo(dtype).eps
    distance = sets[name](scale).distance((x * scale).to(dtype)).double() / scale
    assert (distance - sets[name](1.0).distance(x)).abs().max() < 40 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("far", [1e10, 1e30])
def test_points_far_from_a_small_set(far: float, dtype: torch.dtype) -> None:
    x = torch.tensor([[far, 1.0], [-far, far], [far, -1e-30]], dtype=dtype)
    half = 0.5**0.5
    sphere = torch.tensor([[1.0, 1 / far], [-half, half], [1.0, 0.0]], dtype=dtype)
    for one in (L2Ball(1.0), L2BallInBox(1.0, -2.0, 2.0), Intersection((Box(-2.0, 2.0), L2Ball(1.0)))):
        assert (one.project(x) - sphere).abs().max() < 4 * torch.finfo(dtype).eps
    tight = Intersection((Box(-0.6, 0.6), L2Ball(0.8))).project(x)
    assert (tight[0] - torch.tensor([0.6, 0.28**0.5], dtype=dtype)).abs().max() < 1e-6
    assert (tight[1] - torch.tensor([-(0.32**0.5), 0.32**0.5], dtype=dtype)).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("name", SETS)
def test_projections_do_not_move_points_apart(name: str, dtype: torch.dtype) -> None:
    one = SETS[name](ALL)
    for scale in (0.3, 3.0):
        x, y = points(scale, dtype), points(scale, dtype)
        moved = (one.project(x) - one.project(y)).flatten(1).norm(dim=1)
        assert (moved <= (x - y).flatten(1).norm(dim=1) + slack(name, dtype)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L2Ball(-1.0), "L2Ball: radius must be 0 or larger, got -1.0"),
        (lambda: LinfBall(-0.1), "LinfBall: radius must be 0 or larger, got -0.1"),
        (lambda: L2Ball(torch.tensor([1.0, -2.0])), "L2Ball: radius must be 0 or larger, got -2.0"),
        (
            lambda: LinfBall(torch.ones(2, 1)),
            r"LinfBall: radius must be one number, or one per sample, \(B,\), got a tensor",
        ),
        (lambda: Intersection((Box, L2Ball(1.0))), "Intersection takes feasible sets, such as Box"),
        (lambda: Intersection((Hidden(L2Ball(1.0)), Box(2.0, 3.0))).project(torch.ones(2, 3)), "no point in common"),
        (
            lambda: Intersection((Box(0.0, 1.0), LinfBall(0.5, torch.full((3,), 2.0)))).project(torch.ones(2, 3)),
            "no point",
        ),
        (lambda: L2Ball(float("nan")), "L2Ball: radius must be 0 or larger, got nan"),
        (lambda: Box(1.0, 0.0), "Box is empty: low must not be above high"),
        (lambda: Box(torch.zeros(3), torch.tensor([1.0, -1.0, 1.0])), "Box is empty"),
        (lambda: L2BallInBox(-1.0, -1.0, 1.0), "L2BallInBox: radius must be 0 or larger, got -1.0"),
        (lambda: L2BallInBox(1.0, 0.1, 1.0), "L2BallInBox: the box must hold the origin"),
        (lambda: L2BallInBox(1.0, -1.0, torch.tensor([1.0, -0.1])), "low must be <= 0 and high >= 0"),
        (lambda: Box(torch.zeros(4, 3), 1.0).project(torch.ones(2, 3)), r"Box: low has the shape \(4, 3\), which does"),
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
