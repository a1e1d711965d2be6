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
    """Plain iteration; with ``damping`` below 1 also for cells that only their damped map contracts.

    Args:
        damping: in (0, 1]; 1 is the plain iteration.
    """

    damping: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_share(damping=self.damping)

    def step(self, at: Measured, memory: Memory) -> Tensor:
        return memory.damped(at.point, at.image, self.damping)
