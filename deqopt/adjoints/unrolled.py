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
    """Differentiates the solve as it was run, from its start to the returned iterate.

    ``eq.z``, ``eq.x``, ``eq.mu`` and ``eq.objective`` carry the gradient of the algorithm, whether it converged or not;
    ``eq.objective`` does not carry the envelope gradient. If the start z0, x0 or mu0 requires a gradient, it gets one
    too. Memory grows with every evaluation.

    The derivative of an iterate may fail to converge although the iterate converges. If a solve wanders around its
    solution before it converges, the derivative can be wrong by orders of magnitude. Such a gradient grows on its way
    back through the evaluations. ``eq.backward.growth`` measures this growth, and the backward pass warns of samples
    where it is larger than :data:`deqopt.adjoints.growth.ERRATIC`.

    Args:
        checkpoint: whether to keep only the inputs (z, x, mu) of every evaluation, and to evaluate once more in the
            backward pass (Chen et al. 2016). Outputs of other learned functions that ``cell`` and ``objective`` need
            should be passed as ``data``: outputs that they close over are differentiated down to the parameters in
            every evaluation.

    Example, with the problem and the start of :class:`deqopt.JointProblem`'s:
        >>> from deqopt.solvers import Tracking
        >>> eq = Tracking(max_nfe=48, step_size=0.5).solve(problem, z0, x0, adjoint=Unrolled(checkpoint=True))
        >>> torch.autograd.grad(eq.objective.sum(), weight)[0].isfinite()
        tensor(True)
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
                "Unrolled cannot attach gradients to a finished solve, because it must record the evaluations: call "
                "solve(..., adjoint=Unrolled())"
            )
        return problem.solve.growth.attach(equilibrium)
