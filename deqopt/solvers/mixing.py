"""What the solvers share that mix the whole stationary system: the map, its damping, the way back into the set."""

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
    """What the step size of x multiplies."""

    PLAIN = "plain"
    """The gradient itself: the step size has the units of x squared over those of J."""
    NORMALISED = "normalised"
    """The gradient over the length that it has where its terms do not cancel: the step size is a length, as x, and does
    not depend on the units of J."""


@dataclass(frozen=True)
class JointMixing(JointSolver[Mixing]):
    """Solvers of ``T(z, mu, x) = (f, g_z, Proj(x - step_size g_x)) = (z, mu, x)`` that remember earlier points.

    What they propose may lie outside the feasible set, so its input is projected before it is evaluated.

    Args:
        step_size: of the gradient step in x. Too large diverges, too small converges slowly.
        step_rule: by default NORMALISED, where the step size is a length in units of x.
        history_size: how many points are mixed.
        damping: in (0, 1]: the share of the new residual; one number, or one each for z, mu and x.
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
        # A sample that has started again may have been on its way to a saddle: its input only moves downhill.
        uphill = (memory.rate < 1) & (((mixed - at.x) * at.g_x).sum(1, keepdim=True) > 0)
        return states, torch.where(uphill, x, mixed)

    def _damping(self, system: JointSystem, like: Tensor) -> Tensor | float:
        if not isinstance(self.damping, (tuple, list)):
            return self.damping
        return torch.cat(
            [like.new_full((width,), share) for width, share in zip(system.widths, self.damping, strict=True)]
        )
