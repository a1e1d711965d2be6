"""Damped iteration ``z <- z + damping (f(z) - z)``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deqopt.fixed_point.base import FixedPointSolver
from deqopt.iteration import Measured
from deqopt.memory import Memory
from deqopt.ranges import positive_share


@dataclass(frozen=True)
class Damped(FixedPointSolver):
    """Plain iteration; a ``damping`` below 1 also solves cells that are not contractive but have a contractive damped
    map.

    Args:
        damping: share of the residual that is added in every step, in (0, 1]; 1 is the plain iteration.

    Example:
        >>> Damped(damping=0.7, tol=1e-6).solve(torch.cos, torch.zeros(1, 2)).z
        tensor([[0.7391, 0.7391]])
    """

    damping: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_share(damping=self.damping)

    def step(self, at: Measured, memory: Memory) -> Tensor:
        return memory.damped(at.point, at.image, self.damping)
