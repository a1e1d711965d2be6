"""How gradients with respect to theta reach what a solver returns: what every method of :mod:`deqopt.adjoints` is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

from deqopt.equilibrium import Equilibrium, FixedPoint
from deqopt.errors import ProblemError
from deqopt.problem import JointProblem
from deqopt.state import State


class Adjoint(ABC):
    """How gradients with respect to theta reach a solution. A setting: it remembers nothing of a solve.

    Example, with the problem and the start of :class:`deqopt.JointProblem`'s:
        >>> from deqopt.adjoints import Envelope
        >>> from deqopt.solvers import JointAnderson
        >>> eq = JointAnderson(tol=1e-5).solve(problem, z0, x0, adjoint=Envelope())
        >>> bool(torch.autograd.grad(eq.objective.sum(), weight)[0].isfinite())
        True
    """

    def solve(self, run: Callable[[JointProblem], Equilibrium], problem: JointProblem) -> Equilibrium:
        """What ``run(problem)`` finds, connected to theta: found without a graph and handed to :meth:`attach`, unless
        an adjoint has another way."""
        with torch.no_grad():
            found = run(problem)
        return self.attach(problem, found)

    @abstractmethod
    def attach(self, problem: JointProblem, equilibrium: Equilibrium) -> Equilibrium:
        """The same values, connected to theta. Called with autograd enabled.

        Raises:
            ProblemError: neither cell nor objective reaches anything that requires a gradient.
            NonFiniteError: what cell or objective close over is NaN or infinite for a sample, so that all gradients
                would be NaN. What is handed over as ``data`` may be: such a sample gets no gradient.
        """

    def attach_fixed_point(self, f: Callable[[State], State], found: FixedPoint) -> FixedPoint:
        """The values of a plain ``z = f(z)``, connected to all that f reaches. Called with autograd enabled.

        Raises:
            ProblemError: this adjoint is for joint problems alone.
            NonFiniteError: what f closes over is NaN or infinite for a sample that is lost.
        """
        raise ProblemError(
            f"{type(self).__name__} is an adjoint of joint problems, and z = f(z) has neither an objective nor an "
            "input: use Implicit, Phantom or JacobianFree"
        )
