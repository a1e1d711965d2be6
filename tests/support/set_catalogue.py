"""Feasible sets of every kind, and how precisely each projects."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deqopt.feasible import Box, Everywhere, FeasibleSet, Intersection, L2Ball, L2BallInBox, LinfBall

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


BALLS = {
    "l2": (L2Ball, lambda x: x.flatten(1).norm(dim=1)),
    "linf": (LinfBall, lambda x: x.flatten(1).abs().amax(1)),
}
