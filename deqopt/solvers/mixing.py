"""What the solvers share that mix the whole stationary system: the map, its damping, the way back into the set."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.fixed_point.mixing import Mixing, check_mixing
from deqopt.memory import Memory
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
class JointMixing(JointSolver):
    """Solvers of ``T(z, mu, x) = (f, g_z, Proj(x - step_size g_x)) = (z, mu, x)`` that remember earlier points.

    What they propose may lie outside the feasible set, so its input is projected before it is evaluated.

    Args:
        step_size: of the gradient step in x. Too large diverges, too small converges slowly.
        step_rule: by default NORMALISED, where the step size is a length in units of x.
        memory: how many points are mixed.
        damping: in (0, 1]: the share of the new residual; one number, or one each for z, mu and x.
    """

    step_size: float = 0.3
    step_rule: StepRule = StepRule.NORMALISED
    memory: int = 10
    damping: float | tuple[float, float, float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.damping, (tuple, list)) and len(self.damping) != 3:
            raise ProblemError(f"damping must be one number or three, for z, mu and x; got {len(self.damping)}")
        for damping in self.damping if isinstance(self.damping, (tuple, list)) else (self.damping,):
            check_mixing(self.memory, damping)
        if not self.step_size > 0:
            raise ProblemError(f"step_size must be larger than 0, got {self.step_size}")

    @abstractmethod
    def begin(self, system: JointSystem, w: Tensor) -> Mixing: ...

    def step(self, system: JointSystem, w: Tensor, evaluation: JointEvaluation, memory: Memory) -> Tensor:
        assert isinstance(memory, Mixing)
        length = self.step_size * memory.rate
        if self.step_rule is StepRule.NORMALISED:
            length = length / torch.where(evaluation.size > 0, evaluation.size, 1.0)[:, None]
        here = system.inputs(w)
        x = system.project(here - length * evaluation.g_x)
        proposal = memory.mix(w, torch.cat([evaluation.image, x], dim=1), self._damping(system, w))
        states = proposal[:, : evaluation.image.shape[1]]
        mixed = system.project(system.inputs(proposal))
        # A sample that has started again may have been on its way to a saddle: its input only moves downhill.
        uphill = (memory.rate < 1) & (((mixed - here) * evaluation.g_x).sum(1, keepdim=True) > 0)
        return torch.cat([states, torch.where(uphill, x, mixed)], dim=1)

    def _damping(self, system: JointSystem, w: Tensor) -> Tensor | float:
        if not isinstance(self.damping, (tuple, list)):
            return self.damping
        return torch.cat(
            [w.new_full((width,), share) for width, share in zip(system.widths, self.damping, strict=True)]
        )
