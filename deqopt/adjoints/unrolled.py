"""The gradient of the algorithm: autograd through every evaluation of the solve."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqopt.adjoints.base import Adjoint, check_reaches_theta
from deqopt.adjoints.checkpoint import checkpointed
from deqopt.equilibrium import Equilibrium
from deqopt.errors import ProblemError
from deqopt.problem import Evaluation, JointProblem
from deqopt.state import State, detach, filled_where, tensors_of, zero_where


@dataclass(frozen=True)
class Unrolled(Adjoint):
    """Differentiates the solve as it was run, from its start to the iterate that it returned.

    ``eq.z``, ``eq.x``, ``eq.mu`` and ``eq.objective`` carry the gradient of the algorithm, whether it converged or not;
    ``eq.objective`` has no envelope gradient. Memory grows with every evaluation.

    Args:
        checkpoint: keep of every evaluation only its inputs (z, x, mu), and evaluate once more in the backward pass
            (Chen et al. 2016). What ``cell`` and ``objective`` need from other learned functions is best handed over
            as ``data``: what they close over is differentiated down to its parameters for every evaluation.
    """

    checkpoint: bool = False

    @property
    def through_the_solve(self) -> bool:
        return True

    def evaluate(self, problem: JointProblem, z: State, x: Tensor, mu: State) -> Evaluation:
        """An evaluation that is differentiable in z, x, mu and theta; samples that are not finite carry no gradient."""
        parts = (*tensors_of(z), *tensors_of(mu), x)
        lost = ~torch.stack([part.detach().flatten(1).sum(1) for part in parts]).isfinite().all(0)
        z, mu = zero_where(lost, z), zero_where(lost, mu)
        (x,) = tensors_of(zero_where(lost, x))
        found = checkpointed(problem, z, x, mu) if self.checkpoint else problem.evaluate_with_graph(z, x, mu)
        f, g_z = (filled_where(lost, part, torch.nan) for part in (found.f, found.g_z))
        objective, g_x = tensors_of(filled_where(lost, (found.objective, found.g_x), torch.nan))
        return Evaluation(f, objective, g_z, g_x)

    def attach(self, problem: JointProblem, equilibrium: Equilibrium) -> Equilibrium:
        z, x, mu = detach(equilibrium.z), equilibrium.x.detach(), detach(equilibrium.mu)
        check_reaches_theta(problem.lagrangian(z, x, mu)[0])
        if not equilibrium.objective.requires_grad:
            raise ProblemError(
                "Unrolled cannot attach gradients to a finished solve: hand it to solve(..., adjoint=Unrolled()), "
                "whose evaluations it records"
            )
        return equilibrium
