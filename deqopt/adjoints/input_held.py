"""The implicit gradient of the equilibrium alone, as if its input were given."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deqopt.adjoints.base import Adjoint
from deqopt.adjoints.envelope import Envelope
from deqopt.adjoints.fixed_point import implicit_fixed_point
from deqopt.equilibrium import Equilibrium
from deqopt.errors import ProblemError
from deqopt.fixed_point import Anderson
from deqopt.problem import JointProblem
from deqopt.state import tensors_of, zero_where


@dataclass(frozen=True)
class InputHeld(Adjoint):
    """Implicit differentiation of ``z = f(z, x)`` with x held: see :func:`deqopt.adjoints.implicit_fixed_point`.

    It is the gradient where x is given; here x is optimised, and what theta does to it is left out, as in the published
    code of joint inference. A cheap gradient for comparison: ``eq.z`` carries it, ``eq.x`` and ``eq.mu`` carry none,
    ``eq.objective`` that of the envelope theorem.

    Args:
        tol: of the relative residual of u.
        max_nfe: products with ``(d_z f)^T`` a backward pass.
    """

    tol: float = 1e-3
    max_nfe: int = 50

    def __post_init__(self) -> None:
        if not self.tol > 0 or self.max_nfe < 1:
            raise ProblemError(f"tol must be larger than 0 and max_nfe at least 1, got {self.tol} and {self.max_nfe}")

    def attach(self, problem: JointProblem, equilibrium: Equilibrium) -> Equilibrium:
        attached = Envelope().attach(problem, equilibrium)
        lost = ~equilibrium.usable
        (x,) = tensors_of(zero_where(lost, equilibrium.x))
        solver = Anderson(max_nfe=self.max_nfe, tol=self.tol)
        z, report = implicit_fixed_point(lambda z: problem.f(z, x), equilibrium.z, solver, lost)
        return replace(attached, z=z, backward=report)
