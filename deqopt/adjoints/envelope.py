"""The envelope theorem: the gradient where the outer loss is the inner objective."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deqopt.adjoints.base import Adjoint, check_reaches_theta
from deqopt.equilibrium import Equilibrium
from deqopt.problem import JointProblem
from deqopt.state import tensors_of, zero_where


@dataclass(frozen=True)
class Envelope(Adjoint):
    """``d_theta J* = d_theta [J(z, x) + <mu, f(z, x)>]`` at the solution, with z, x and mu held fixed.

    Exact (Danskin; to first order in the residual) for losses that are functions of ``eq.objective`` alone, at
    the cost of one evaluation and no second solve. ``eq.z``, ``eq.x`` and ``eq.mu`` stay without gradients.
    """

    def attach(self, problem: JointProblem, equilibrium: Equilibrium) -> Equilibrium:
        lost = ~equilibrium.usable
        z, mu = zero_where(lost, equilibrium.z), zero_where(lost, equilibrium.mu)
        (x,) = tensors_of(zero_where(lost, equilibrium.x))
        lagrangian, _, _ = problem.lagrangian(z, x, mu)
        check_reaches_theta(lagrangian)
        objective = equilibrium.objective + (lagrangian - lagrangian.detach())
        return replace(equilibrium, objective=objective)
