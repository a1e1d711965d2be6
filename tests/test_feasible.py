"""Feasible sets: what makes a projection a projection, for every set, precision and distance."""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from scipy.optimize import minimize, nnls
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.feasible import A_SAMPLE, Box, Everywhere, FeasibleSet, Intersection, L2Ball, L2BallInBox, LinfBall

SAMPLES, SHAPE = 7, (2, 3)


def centres() -> Tensor:
    return torch.linspace(-2, 2, SAMPLES * 6, dtype=torch.float64).reshape(SAMPLES, *SHAPE)


def radii() -> Tensor:
    return torch.linspace(0.0, 1.5, SAMPLES, dtype=torch.float64)


@dataclass(frozen=True)
class Hidden(FeasibleSet):
    """A set of which nothing but its projection is known."""

    one: FeasibleSet

    def project(self, x: Tensor) -> Tensor:
        return self.one.project(x)


@dataclass(frozen=True)
class HalfSpace(FeasibleSet):
    """The entries add up to at least ``least``."""

    least: float | Tensor = 0.3

    def project(self, x: Tensor) -> Tensor:
        missing = (self.least - x.flatten(1).sum(1)).clamp_min(0) / x[0].numel()
        return x + missing.reshape(-1, *[1] * (x.dim() - 1))


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
    "nested": lambda rows: Intersection((Intersection((L2Ball(1.0), Everywhere())), L2BallInBox(1.2, -0.4, 0.9))),
    "l2_radii": lambda rows: L2Ball(radii()[rows], centres()[rows]),
    "l2_scalar_radius": lambda rows: L2Ball(torch.tensor(0.8)),
    "linf_radii": lambda rows: LinfBall(radii()[rows]),
    "radii_in_box": lambda rows: L2BallInBox(radii()[rows], -0.4, 0.9),
    "radii_and_boxes": lambda rows: Intersection(
        (LinfBall(0.6, centres()[rows]), L2Ball(radii()[rows], centres()[rows]))
    ),
    "others": lambda rows: Intersection((Hidden(Box(-0.2, 0.4)), Hidden(L2Ball(0.6, centres()[rows] / 9)))),
    "half_space_in_ball": lambda rows: Intersection((L2Ball(0.9), HalfSpace())),
    "half_space_box_ball": lambda rows: Intersection((LinfBall(0.7), L2Ball(radii()[rows] + 0.6), HalfSpace())),
}
SWEPT = ("others", "half_space_box_ball")
ALL = list(range(SAMPLES))
PRECISION = {torch.float32: 1e-6, torch.float64: 1e-12}
SCALES = [0.1, 1.0, 30.0]


def points(scale: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return (scale * torch.randn(SAMPLES, *SHAPE, dtype=torch.float64)).to(dtype)


def slack(name: str, dtype: torch.dtype) -> float:
    """The sweeps stop at 1e-9 of the norm; the rest is rounding."""
    swept = (2e-5 if dtype == torch.float32 else 1e-7) if name in SWEPT else 0
    return PRECISION[dtype] * 4 + swept


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


# -- intersections ----------------------------------------------------------------------------------------------------

DISC_AND_STRIP = (Box(-0.6, 0.6), L2Ball(0.8))


@pytest.mark.parametrize("wrap", [lambda one: one, Hidden], ids=["known", "hidden"])
@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("order", [1, -1])
def test_a_corner_where_the_point_rests_while_the_corrections_change(order: int, dtype: torch.dtype, wrap: Any) -> None:
    """The disc and the strip meet in (0.6, sqrt(0.28)), the nearest point to (2, 1)."""
    sets = tuple(wrap(one) for one in DISC_AND_STRIP[::order])
    found = Intersection(sets).project(torch.tensor([[2.0, 1.0]], dtype=dtype))
    nearest = torch.tensor([[0.6, 0.28**0.5]], dtype=dtype)
    assert (found - nearest).abs().max() < (1e-6 if dtype == torch.float32 else 1e-9)


def test_intersection_of_two_known_sets() -> None:
    """The unit disc and the half plane x >= 0.6: the corner is (0.6, 0.8)."""
    both = Intersection((L2Ball(1.0), Box(torch.tensor([0.6, -9.0], dtype=torch.float64), 9.0)))
    x = torch.tensor([[0.0, 5.0], [0.0, 0.0], [9.0, 0.0], [0.7, 0.1], [-50.0, 40.0]], dtype=torch.float64)
    nearest = torch.tensor([[0.6, 0.8], [0.6, 0.0], [1.0, 0.0], [0.7, 0.1], [0.6, 0.8]], dtype=torch.float64)
    assert torch.allclose(both.project(x), nearest, rtol=0, atol=1e-14)


def outward(one: FeasibleSet, u: Tensor, near: float) -> list[Tensor]:
    """The outward normals of a known set at u, (n,), of the constraints that are active to within ``near``."""
    if isinstance(one, L2Ball):
        offset = u if one.center is None else u - one.center
        return [offset / offset.norm()] if offset.norm() > float(one.radius) - near else []
    assert isinstance(one, Box)
    eye = torch.eye(len(u), dtype=u.dtype)
    low, high = (torch.as_tensor(bound, dtype=u.dtype).expand_as(u) for bound in (one.low, one.high))
    return [*eye[u > high - near], *-eye[u < low + near]]


def gap_of_optimality(sets: Sequence[FeasibleSet], x: Tensor, u: Tensor, near: float) -> float:
    """How far x - u is from the cone of the outward normals at u: 0 at the nearest point, and only there."""
    normals = [normal for one in sets for normal in outward(one, u, near)]
    if not normals:
        return float((x - u).norm())
    _, rest = nnls(torch.stack(normals, 1).numpy(), (x - u).numpy())
    return float(rest)


def drawn_sets(kind: str, n: int) -> tuple[FeasibleSet, ...]:
    """Sets that have a point in common, and little more than that where the kind says so."""
    common = torch.randn(n, dtype=torch.float64) / n**0.5
    box = Box(common - torch.rand(n, dtype=torch.float64), common + torch.rand(n, dtype=torch.float64))
    room = {"wide": 1.0, "narrow": 1e-3, "tangent": 1e-6}.get(kind, 0.3)

    def ball(scale: float) -> L2Ball:
        center = common + scale * torch.randn(n, dtype=torch.float64)
        return L2Ball(float((center - common).norm()) + room * float(torch.rand(())), center)

    if kind in ("wide", "narrow", "tangent"):
        return (box, ball(1.0)) if torch.rand(()) < 0.5 else (ball(1.0), box)
    many = [ball(0.3), box, ball(1.0)] if kind == "balls" else [ball(0.3), box, LinfBall(1.0, common + 0.7)]
    return tuple(many[i] for i in torch.randperm(len(many)))


@pytest.mark.parametrize("n", [1, 2, 5, 30])
@pytest.mark.parametrize("kind", ["wide", "narrow", "tangent", "balls", "boxes"])
def test_the_nearest_point_by_its_optimality_conditions(kind: str, n: int) -> None:
    """In all sets, and what leads back to x is a sum of outward normals: solved for by non-negative least squares."""
    for _ in range(8):
        sets = drawn_sets(kind, n)
        far = float(torch.rand(())) * 10
        x = far * torch.randn(4, n, dtype=torch.float64)
        both = Intersection(sets)
        found = both.project(x)
        plain = [Box(b.center - b.radius, b.center + b.radius) if isinstance(b, LinfBall) else b for b in sets]
        for one in plain:
            assert (one.distance(found) < 1e-12 * (1 + far)).all()
        # A gap of 1e-6 makes multipliers of 1e3, which rounding of the active sets is multiplied by.
        slack = 1e-11 if kind in ("wide", "boxes", "balls") else 1e-6
        for row in range(4):
            assert gap_of_optimality(plain, x[row], found[row], 1e-9) < slack * (1 + far), (sets, x[row])
        single = both.project(x.float())
        assert (single.double() - found).norm(dim=1).max() < {"tangent": 2e-2, "narrow": 2e-3}.get(kind, 1e-4) * (
            1 + far
        )


@pytest.mark.parametrize("n", [2, 6])
def test_the_nearest_point_by_another_solver(n: int) -> None:
    """Three sets, as SLSQP solves them."""
    for _ in range(6):
        sets = (Box(-0.5, 0.7), L2Ball(0.8), L2Ball(0.9, torch.full((n,), 0.25, dtype=torch.float64)))
        x = 2 * torch.randn(1, n, dtype=torch.float64)
        rooms = [
            {"type": "ineq", "fun": lambda u, b=b: b.radius**2 - ((u - (0 if b.center is None else 0.25)) ** 2).sum()}
            for b in sets[1:]
        ]
        given = x[0].numpy()
        theirs = minimize(
            lambda u, given=given: ((u - given) ** 2).sum() / 2,
            [0.1] * n,
            jac=lambda u, given=given: u - given,
            bounds=[(-0.5, 0.7)] * n,
            constraints=rooms,
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        )
        ours = Intersection(sets).project(x)[0]
        assert (ours - torch.from_numpy(theirs.x)).norm() < 1e-5
        swept = Intersection(tuple(Hidden(one) for one in sets)).project(x)[0]
        assert (ours - swept).norm() < 1e-7


@pytest.mark.parametrize("gap", [0.5, 1e-2, 1e-4])
def test_sets_of_which_only_the_projection_is_known_nearly_touch(gap: float) -> None:
    """The lens of two balls: the sweeps agree with the search for the multiplier, or say how far off they may be."""
    for n in (2, 10):
        center = torch.zeros(n, dtype=torch.float64)
        center[0] = 2 - gap
        sets = (L2Ball(1.0), L2Ball(1.0, center))
        x = 2 * torch.randn(8, n, dtype=torch.float64)
        nearest = Intersection(sets).project(x)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            swept = Intersection(tuple(map(Hidden, sets)), sweeps=300).project(x)
        off = float((swept - nearest).norm(dim=1).max())
        if not caught:
            assert off < 1e-6
        for one in caught:
            bound = re.search(r"up to (\S+) away from the nearest point", str(one.message))
            assert bound is not None and off <= float(bound[1])


def test_too_few_sweeps_are_said() -> None:
    sets = (Hidden(Box(-0.6, 0.6)), Hidden(L2Ball(0.8)))
    x = torch.tensor([[2.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    with pytest.warns(
        UserWarning, match=r"1 of 2 samples are not projected to tolerance after 2 sweeps: up to \S+ away"
    ):
        found = Intersection(sets, sweeps=2).project(x)
    assert torch.equal(found[1], x[1])


@pytest.mark.parametrize("name", SWEPT)
def test_a_settled_sample_does_not_wait_for_the_others(name: str) -> None:
    """Bit by bit what it is alone, whatever is beside it."""
    x = points(1.0)
    x[::2] *= 1e-3
    together = SETS[name](ALL).project(x)
    for i in ALL:
        assert (SETS[name]([i]).project(x[i : i + 1])[0] - together[i]).abs().max() < 1e-9


@pytest.mark.parametrize("scale", SCALES)
def test_the_ball_in_a_box_is_their_intersection(scale: float) -> None:
    """What the general iteration finds slowly."""
    low, high = -centres()[ALL].abs() / 4, centres()[ALL].abs() / 3
    x = points(scale)
    found = L2BallInBox(0.8, low, high).project(x)
    swept = Intersection((Hidden(L2Ball(0.8)), Box(low, high))).project(x)
    assert torch.allclose(found, swept, atol=1e-7 * max(1, scale))
    assert (found.flatten(1).norm(dim=1) <= 0.8 + 1e-14).all() and (found >= low).all() and (found <= high).all()


# -- derivatives ------------------------------------------------------------------------------------------------------

CENTRES = torch.linspace(-0.4, 0.7, 12, dtype=torch.float64).reshape(2, 6)[:, ::2]
LEARNED: dict[str, tuple[Callable[..., FeasibleSet], tuple[Tensor, ...]]] = {
    "l2": (lambda r, c: L2Ball(r, c), (torch.tensor([0.7, 1.2]), CENTRES)),
    "linf": (lambda r, c: LinfBall(r, c), (torch.tensor([0.3, 0.6]), CENTRES)),
    "box": (lambda low, high: Box(low, high), (-CENTRES.abs(), CENTRES.abs() + 0.1)),
    "l2_in_box": (lambda r, high: L2BallInBox(r, -0.4, high), (torch.tensor([0.7, 0.5]), CENTRES.abs() + 0.1)),
    "known": (
        lambda r, c, low: Intersection((Box(low, 0.8), L2Ball(r, c))),
        (torch.tensor([0.7, 0.9]), CENTRES, torch.full((3,), -0.3)),
    ),
    "two_balls_in_box": (
        lambda r, c: Intersection((L2Ball(r, c), Box(-0.5, 0.9), L2Ball(0.9))),
        (torch.tensor(0.8), CENTRES),
    ),
    "hidden": (
        lambda r, c: Intersection((Hidden(L2Ball(r, c)), Hidden(Box(-0.4, 0.5))), tol=1e-14),
        (torch.tensor([0.7, 0.9]), CENTRES),
    ),
    "three": (
        lambda r, least: Intersection((LinfBall(0.6), HalfSpace(least), Hidden(L2Ball(r))), tol=1e-14),
        (torch.tensor([1.0, 0.9]), torch.tensor(0.5)),
    ),
}


@pytest.mark.parametrize("name", LEARNED)
def test_projections_are_differentiable_in_the_point_and_in_what_they_are_made_of(name: str) -> None:
    make, given = LEARNED[name]
    inputs = tuple(part.double().requires_grad_() for part in given)
    for far in (0.3, 2.0):
        x = (far * torch.randn(2, 3, dtype=torch.float64)).requires_grad_()

        def project(x: Tensor, *parts: Tensor) -> Tensor:
            return make(*parts).project(x)

        assert torch.autograd.gradcheck(project, (x, *inputs), atol=1e-5)
        if name not in ("hidden", "three"):
            assert torch.autograd.gradgradcheck(project, (x, *inputs), atol=1e-4)


def test_the_iteration_says_that_it_is_differentiated_once() -> None:
    make, given = LEARNED["hidden"]
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    found = make(*(part.double() for part in given)).project(x)
    with pytest.raises(ProblemError, match="can be differentiated once"):
        torch.autograd.grad(found.sum(), x, create_graph=True)


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


# -- one radius a sample, and the sets of some samples -----------------------------------------------------------------


def test_a_radius_for_every_sample() -> None:
    x = points(30.0)
    for kind, norm in BALLS.values():
        assert torch.allclose(norm(kind(radii(), centres()).project(x) - centres()), radii())
        with pytest.raises(ProblemError, match=r"center has the shape \(7, 2, 3\), which does not broadcast to x"):
            kind(1.0, centres()).project(x[:3])
        with pytest.raises(ProblemError, match="radius has 7 entries for 3 samples: give a number, or one a sample"):
            kind(radii()).project(x[:3])
    with pytest.raises(ProblemError, match="radius has 7 entries for 3 samples"):
        L2BallInBox(radii(), -1.0, 1.0).project(x[:3])


@dataclass(frozen=True)
class Slab(FeasibleSet):
    """Written by a user: fields of every kind, and no ``pick``."""

    normal: Tensor
    bounds: tuple[Tensor, Tensor] = (torch.zeros(SAMPLES, 2, 3), torch.ones(1, 2, 3))
    label: str = "slab"
    weights: Tensor = field(default_factory=lambda: torch.arange(float(SAMPLES)), metadata=A_SAMPLE)
    within: list[FeasibleSet] = field(default_factory=lambda: [L2Ball(radii()), LinfBall(1.0, centres())])

    def project(self, x: Tensor) -> Tensor:
        return x


def test_a_set_picks_what_has_a_row_a_sample() -> None:
    keep = torch.tensor([True, False, False, True, True, False, False])
    slab = Slab(torch.eye(SAMPLES))
    picked = slab.pick(keep, dim=3)
    assert isinstance(picked, Slab)
    assert picked.normal is slab.normal and picked.label == "slab"
    assert picked.bounds[0].shape == (3, 2, 3) and picked.bounds[1].shape == (1, 2, 3)
    assert torch.equal(picked.weights, torch.tensor([0.0, 3.0, 4.0]))
    ball, cube = picked.within
    assert isinstance(ball, L2Ball) and isinstance(cube, LinfBall) and cube.center is not None
    assert torch.equal(torch.as_tensor(ball.radius), radii()[keep]) and torch.equal(cube.center, centres()[keep])


@pytest.mark.parametrize("name", SETS)
def test_the_set_of_some_samples_projects_them_the_same(name: str) -> None:
    one, x = SETS[name](ALL), points(3.0)
    keep = torch.tensor([True, False, True, True, False, False, True])
    picked = one.pick(keep, x.dim())
    assert picked is not None and type(picked) is type(one)
    assert torch.allclose(picked.project(x[keep]), one.project(x)[keep], atol=1e-8)
    again = picked.pick(torch.tensor([False, True, False, True]), x.dim())
    assert again is not None
    assert torch.allclose(again.project(x[keep][1::2]), one.project(x)[keep][1::2], atol=1e-8)


class Plain(FeasibleSet):
    """No dataclass."""

    def project(self, x: Tensor) -> Tensor:
        return x


class Marked(L2Ball):
    """Made a dataclass by its base, with something that the base does not know of."""

    def __init__(self) -> None:
        super().__init__(1.0)
        object.__setattr__(self, "marks", torch.zeros(SAMPLES, 3))


@pytest.mark.parametrize(
    "one",
    [Plain(), Marked(), Slab(torch.eye(2), (torch.zeros(4, 2, 3), torch.ones(1, 2, 3))), Intersection((Plain(),))],
    ids=["plain", "marked", "rows_of_nobody", "nested"],
)
def test_a_set_that_cannot_tell_whose_its_rows_are_is_not_picked(one: FeasibleSet) -> None:
    assert one.pick(torch.ones(SAMPLES, dtype=torch.bool), 3) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L2Ball(-1.0), "L2Ball: radius must be 0 or larger, got -1.0"),
        (lambda: LinfBall(-0.1), "LinfBall: radius must be 0 or larger, got -0.1"),
        (lambda: L2Ball(torch.tensor([1.0, -2.0])), "L2Ball: radius must be 0 or larger, got -2.0"),
        (
            lambda: LinfBall(torch.ones(2, 1)),
            r"LinfBall: radius must be a number, or one a sample, \(B,\), got a tensor",
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
