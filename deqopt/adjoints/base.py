"""What every adjoint does."""

from __future__ import annotations

from abc import ABC, abstractmethod

from deqopt.equilibrium import Equilibrium
from deqopt.problem import JointProblem


class Adjoint(ABC):
    """Attaches gradients with respect to theta to a detached solution."""

    @abstractmethod
    def attach(self, problem: JointProblem, equilibrium: Equilibrium) -> Equilibrium:
        """The same values, connected to theta. Called with autograd enabled.

        Raises:
            ProblemError: neither cell nor objective reaches anything that requires a gradient.
        """
