"""Sets with parts of every sample: one radius each, and the set of some samples."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.feasible import A_SAMPLE, FeasibleSet, Intersection, L2Ball, L2BallInBox, LinfBall
from set_catalogue import ALL, BALLS, SAMPLES, SETS, centres, points, radii

# -- one radius a sample, and the sets of some samples -----------------------------------------------------------------


def test_a_radius_for_every_sample() -> None:
    x = points(30.0)
    for kind, norm in BALLS.values():
        assert torch.allclose(norm(kind(radii(), centres()).project(x) - centres()), radii())
        with pytest.raises(ProblemError, match=r"center has the shape \(7, 2, 3\), which does not broadcast to x"):
            kind(1.0, centres()).project(x[:3])
        with pytest.raises(ProblemError, match="radius has 7 entries for 3 samples: give a number, or one per sample"):
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
