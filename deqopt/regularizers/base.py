"""The base class of all regularisers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from deqopt.equilibrium import Equilibrium
from deqopt.problem import JointProblem


class Regularizer(ABC):
    """A penalty that is added to the loss, ``weight * penalty``, and logged under ``name`` without its weight.

    Example:
        >>> import torch
        >>> from deqopt import JointProblem
        >>> problem = JointProblem(lambda z, x: 0.5 * z + x, lambda z, x: (z - 1).square().sum(1))
        >>> from deqopt.regularizers import Regularizer
        >>> class SmallStates(Regularizer):
        ...     name, weight = "states", 0.1
        ...     def penalty(self, problem, equilibrium):
        ...         return equilibrium.z.square().mean()
    """

    name: ClassVar[str]
    weight: float
    visits: int = 0
    """Number of iterates of the trajectory that the penalty uses in addition to the equilibrium."""

    @abstractmethod
    def penalty(self, problem: JointProblem, equilibrium: Equilibrium) -> Tensor:
        """A scalar, differentiable in theta."""
