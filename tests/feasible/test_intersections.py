"""Projections onto intersections: the nearest point, by its optimality conditions, and its derivatives."""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from scipy.optimize import minimize, nnls
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.feasible import Box, FeasibleSet, Intersection, L2Ball, L2BallInBox, LinfBall
from set_catalogue import ALL, PRECISION, SCALES, SETS, SWEPT, HalfSpace, Hidden, centres, points

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
        tol = 1e-11 if kind in ("wide", "boxes", "balls") else 1e-6
        for row in range(4):
            assert gap_of_optimality(plain, x[row], found[row], 1e-9) < tol * (1 + far), (sets, x[row])
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
    with pytest.raises(ProblemError, match="can be differentiated only once"):
        torch.autograd.grad(found.sum(), x, create_graph=True)
