"""What Anderson mixing and Broyden's method share: a memory that turns ``w`` and ``T(w)`` into the next point."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.memory import Memory


class Mixing(Memory):
    """Remembers points and their images."""

    @abstractmethod
    def mix(self, w: Tensor, target: Tensor, damping: Tensor | float) -> Tensor:
        """Remember ``T(w) = target`` and propose the next point; all (B, width). ``damping`` broadcasts to the rows."""


def check_mixing(memory: int, damping: float) -> None:
    """Raise ProblemError for settings that cannot be meant."""
    if memory < 1:
        raise ProblemError(f"memory must be at least 1, got {memory}")
    if not 0 < damping <= 1:
        raise ProblemError(f"damping must be in (0, 1], got {damping}")
