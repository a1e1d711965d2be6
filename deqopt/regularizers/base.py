"""The base class of all regularisers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from deqopt.equilibrium import Equilibrium
from deqopt.errors import check_finite
from deqopt.problem import JointProblem
from deqopt.ranges import not_negative


class Regularizer(ABC):
    """A penalty that is added to the loss, ``weight * penalty``, and logged under ``name`` without its weight.

    Example:
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

    def __post_init__(self) -> None:
        """Called for a dataclass. Raises ProblemError where weight or visits cannot be meant."""
        not_negative(type(self).__name__, weight=self.weight, visits=self.visits)
        check_finite(type(self).__name__, weight=self.weight)

    @abstractmethod
    def penalty(self, problem: JointProblem, equilibrium: Equilibrium) -> Tensor:
        """A scalar, differentiable in theta."""


def squares(parts: Sequence[Tensor]) -> Tensor:
    """(B,) the sum of the squares of a sample, in float32."""
    return torch.stack([part.float().square().flatten(1).sum(1) for part in parts]).sum(0)
