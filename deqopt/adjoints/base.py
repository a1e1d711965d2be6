"""What every adjoint does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from deqopt.equilibrium import Equilibrium
from deqopt.problem import Evaluation, JointProblem
from deqopt.state import State


class Adjoint(ABC):
    """How gradients with respect to theta reach a solution."""

    through_the_solve: ClassVar[bool] = False
    """Whether autograd records the solve itself. All others attach gradients to its detached solution."""

    def evaluate(self, problem: JointProblem, z: State, x: Tensor, mu: State) -> Evaluation:
        """How the solve is to evaluate the problem: detached, unless autograd records it."""
        return problem.evaluate(z, x, mu)

    @abstractmethod
    def attach(self, problem: JointProblem, equilibrium: Equilibrium) -> Equilibrium:
        """The same values, connected to theta. Called with autograd enabled.

        Raises:
            ProblemError: neither cell nor objective reaches anything that requires a gradient.
        """
