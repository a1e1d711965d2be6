"""The implicit gradient of the equilibrium alone, as if its input were fixed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deqopt.adjoint import Adjoint
from deqopt.adjoints.envelope import envelope_objective
from deqopt.adjoints.fixed_point import solved_by
from deqopt.adjoints.held import hold
from deqopt.adjoints.left_out import point_of, report_of
from deqopt.adjoints.stationary import connected_map
from deqopt.equilibrium import Equilibrium
from deqopt.errors import check_finite
from deqopt.fixed_point import Anderson
from deqopt.problem import JointProblem
from deqopt.ranges import at_least, positive


@dataclass(frozen=True)
class InputHeld(Adjoint):
    """Implicit differentiation of ``z = f(z, x)`` with x held fixed, see :func:`deqopt.adjoints.implicit_fixed_point`.

    It would be the exact gradient for a given x. Here x is optimised, and the effect of theta on x is left out, as in
    the published code of joint inference. It is a cheap gradient for comparison. ``eq.z`` carries this gradient, and
    ``eq.objective`` that of the envelope theorem. ``eq.x`` and ``eq.mu`` carry none; the backward pass of a loss that
    depends on them warns.

    Args:
        tol: tolerance of the relative residual of u.
        max_nfe: largest number of products with ``(d_z f)^T`` per backward pass.

    Example, with the problem and the start of :class:`deqopt.JointProblem`'s:
        >>> from deqopt.solvers import JointAnderson
        >>> eq = JointAnderson(tol=1e-5).solve(problem, z0, x0, adjoint=InputHeld())
        >>> torch.autograd.grad(eq.z.sum(), weight)  # z = x / (1 - w) with x = 0.4
        (tensor(9.6000),)
    """

    tol: float = 1e-3
    max_nfe: int = 50

    def __post_init__(self) -> None:
        positive(tol=self.tol)
        at_least(1, max_nfe=self.max_nfe)
        check_finite(tol=self.tol)

    def attach(self, problem: JointProblem, equilibrium: Equilibrium) -> Equilibrium:
        who, report = type(self).__name__, report_of(equilibrium)
        point = point_of(who, problem, equilibrium)
        objective = envelope_objective(who, point, equilibrium.objective, report)
        multiplier = solved_by(who, Anderson(max_nfe=self.max_nfe, tol=self.tol))
        z = connected_map(who, lambda z: point.problem.f(z, point.x), point.z, equilibrium.z, report, multiplier)
        return hold(replace(equilibrium, z=z, objective=objective, backward=report), ("x", "mu"), who)
