"""The base class of the solvers that mix the whole stationary system: the map, its damping and the projection."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.fixed_point.mixing import Mixing, check_mixing
from deqopt.ranges import positive
from deqopt.solvers.base import JointSolver
from deqopt.solvers.system import JointEvaluation, JointSystem


class StepRule(Enum):
    """The vector that the step size of x multiplies."""

    PLAIN = "plain"
    """The gradient itself: the step size has the units of x squared divided by the units of J."""
    NORMALISED = "normalised"
    """The gradient divided by the length that it would have if its terms did not cancel: the step size is a length in
    units of x, and does not depend on the units of J."""


@dataclass(frozen=True)
class JointMixing(JointSolver[Mixing]):
    """Solvers of ``T(z, mu, x) = (f, g_z, Proj(x - step_size g_x)) = (z, mu, x)`` that remember earlier points.

    A proposal may lie outside the feasible set, so its input is projected before it is evaluated.

    Args:
        step_size: size of the gradient step in x. Too large steps diverge, too small steps converge slowly.
        step_rule: meaning of ``step_size``; by default NORMALISED, where it is a length in units of x.
        history_size: number of points that are mixed.
        damping: share of the new residual, in (0, 1]; one number, or three numbers for z, mu and x.
    """

    step_size: float = 0.3
    step_rule: StepRule = StepRule.NORMALISED
    history_size: int = 10
    damping: float | tuple[float, float, float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.damping, (tuple, list)) and len(self.damping) != 3:
            raise ProblemError(f"damping must be one number or three, for z, mu and x; got {len(self.damping)}")
        for damping in self.damping if isinstance(self.damping, (tuple, list)) else (self.damping,):
            check_mixing(self.history_size, damping)
        positive(step_size=self.step_size)

    @abstractmethod
    def begin(self, system: JointSystem, states: Tensor, x: Tensor) -> Mixing: ...

    def step(self, system: JointSystem, at: JointEvaluation, memory: Mixing) -> tuple[Tensor, Tensor]:
        length = self.step_size * memory.rate
        if self.step_rule is StepRule.NORMALISED:
            length = length / at.size[:, None]
        x = system.project(at.x - length * at.g_x)
        proposal = memory.mix(at.point, system.join(at.image, x), self._damping(system, at.point))
        states, mixed = system.split(proposal)
        mixed = system.project(mixed)
        # A sample that has started again may have been on its way to a saddle, so its input may only move downhill.
        uphill = (memory.rate < 1) & (((mixed - at.x) * at.g_x).sum(1, keepdim=True) > 0)
        return states, torch.where(uphill, x, mixed)

    def _damping(self, system: JointSystem, like: Tensor) -> Tensor | float:
        if not isinstance(self.damping, (tuple, list)):
            return self.damping
        return torch.cat(
            [like.new_full((width,), share) for width, share in zip(system.widths, self.damping, strict=True)]
        )
