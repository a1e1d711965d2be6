"""The base class of all adjoints (:mod:`deqopt.adjoints`): methods by which gradients reach theta from a solution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

from deqopt.equilibrium import Equilibrium, FixedPoint
from deqopt.errors import ProblemError
from deqopt.problem import JointProblem
from deqopt.state import State


class Adjoint(ABC):
    """A method by which gradients reach theta from a solution. It holds only settings, and no state of a solve.

    Example, with the problem and the start of :class:`deqopt.JointProblem`'s:
        >>> from deqopt.adjoints import Envelope
        >>> from deqopt.solvers import JointAnderson
        >>> eq = JointAnderson(tol=1e-5).solve(problem, z0, x0, adjoint=Envelope())
        >>> bool(torch.autograd.grad(eq.objective.sum(), weight)[0].isfinite())
        True
    """

    def solve(self, run: Callable[[JointProblem], Equilibrium], problem: JointProblem) -> Equilibrium:
        """The solution of ``run(problem)``, connected to theta. By default, the solve runs without a graph and
        :meth:`attach` connects the result."""
        with torch.no_grad():
            found = run(problem)
        return self.attach(problem, found)

    @abstractmethod
    def attach(self, problem: JointProblem, equilibrium: Equilibrium) -> Equilibrium:
        """The same values, connected to theta. Called with autograd enabled.

        Raises:
            ProblemError: neither cell nor objective depends on anything that requires a gradient.
            NonFiniteError: cell or objective close over values that are NaN or infinite for a sample, which would make
                all gradients NaN. Values in ``data`` may be NaN or infinite: such a sample gets no gradient.
        """

    def attach_fixed_point(self, f: Callable[[State], State], found: FixedPoint) -> FixedPoint:
        """The values of a plain ``z = f(z)``, with gradients to everything that f depends on. Called with autograd
        enabled.

        Raises:
            ProblemError: this adjoint is for joint problems only.
            NonFiniteError: f closes over values that are NaN or infinite for a lost sample.
        """
        raise ProblemError(
            f"{type(self).__name__} is an adjoint of joint problems, and z = f(z) has neither an objective nor an "
            "input: use Implicit, Phantom or JacobianFree"
        )
