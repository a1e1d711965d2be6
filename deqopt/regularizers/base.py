"""What every regulariser does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from deqopt.equilibrium import Equilibrium
from deqopt.problem import JointProblem


class Regularizer(ABC):
    """A penalty that is added to the loss, ``weight * penalty``, and logged under ``name`` without its weight."""

    name: ClassVar[str]
    weight: float
    visits: int = 0
    """Iterates of the trajectory that the penalty wants to see besides the equilibrium."""

    @abstractmethod
    def penalty(self, problem: JointProblem, equilibrium: Equilibrium) -> Tensor:
        """A scalar, differentiable in theta."""
