"""The gradient of the algorithm: autograd through every evaluation of the solve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deqopt.adjoint import Adjoint
from deqopt.adjoints.left_out import point_of
from deqopt.adjoints.recorded import RecordedProblem
from deqopt.adjoints.reporting import check_reaches_theta
from deqopt.equilibrium import Equilibrium
from deqopt.errors import ProblemError
from deqopt.problem import JointProblem


@dataclass(frozen=True)
class Unrolled(Adjoint):
    """Differentiates the solve as it was run, from its start to the iterate that it returned.

    ``eq.z``, ``eq.x``, ``eq.mu`` and ``eq.objective`` carry the gradient of the algorithm, whether it converged or not;
    ``eq.objective`` has no envelope gradient. A start z0, x0 or mu0 that carries a gradient gets its own. Memory grows
    with every evaluation.

    The derivative of an iterate need not converge where the iterate does: of a solve that wanders about its solution
    before it gets there it can be wrong by orders of magnitude. Such a gradient grows on its way back through the
    evaluations: ``eq.backward.growth`` says how much, and the backward pass warns of samples where it is beyond
    :data:`deqopt.adjoints.growth.ERRATIC`.

    Args:
        checkpoint: keep of every evaluation only its inputs (z, x, mu), and evaluate once more in the backward pass
            (Chen et al. 2016). What ``cell`` and ``objective`` need from other learned functions is best handed over
            as ``data``: what they close over is differentiated down to its parameters for every evaluation.
    """

    checkpoint: bool = False

    def solve(self, run: Callable[[JointProblem], Equilibrium], problem: JointProblem) -> Equilibrium:
        recorded = RecordedProblem.of(problem, type(self).__name__, self.checkpoint)
        return self.attach(recorded, run(recorded))

    def attach(self, problem: JointProblem, equilibrium: Equilibrium) -> Equilibrium:
        if not isinstance(problem, RecordedProblem) or not problem.solve.start_learns:
            point = point_of(type(self).__name__, problem, equilibrium)
            check_reaches_theta(point.problem.lagrangian(point.z, point.x, point.mu)[0])
        if not isinstance(problem, RecordedProblem) or not equilibrium.objective.requires_grad:
            raise ProblemError(
                "Unrolled cannot attach gradients to a finished solve: hand it to solve(..., adjoint=Unrolled()), "
                "whose evaluations it records"
            )
        return problem.solve.growth.attach(equilibrium)
