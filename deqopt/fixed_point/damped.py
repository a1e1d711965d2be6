"""Damped iteration ``z <- z + damping (f(z) - z)``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.fixed_point.base import FixedPointSolver
from deqopt.memory import Memory


@dataclass(frozen=True)
class Damped(FixedPointSolver):
    """Plain iteration; with ``damping`` below 1 also for cells that only their damped map contracts.

    Args:
        damping: in (0, 1]; 1 is the plain iteration.
    """

    damping: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.damping <= 1:
            raise ProblemError(f"damping must be in (0, 1], got {self.damping}")

    def step(self, w: Tensor, target: Tensor, memory: Memory) -> Tensor:
        return memory.damped(w, target, self.damping)
