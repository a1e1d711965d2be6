"""Jacobian penalty (Bai, Koltun, Kolter: Stabilizing equilibrium models by Jacobian regularization, 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deqopt.equilibrium import Equilibrium
from deqopt.errors import ProblemError, check_finite
from deqopt.problem import JointProblem
from deqopt.regularizers.base import Regularizer
from deqopt.state import State, leaf, tensors_of
from deqopt.usable import UsablePoint


@dataclass(frozen=True)
class JacobianPenalty(Regularizer):
    """Hutchinson's estimate of ``|d_z f|_F^2 / dim z``: the mean of ``|(d_z f)^T v|^2 / dim z`` over Gaussian v.

    A small value makes f contract, so that z and mu are found with few evaluations.

    Args:
        weight: weight of the penalty in the loss.
        probes: number of Gaussian vectors v per point.
        visits: number of random iterates of the trajectory at which the penalty is computed, besides the equilibrium.

    Example:
        >>> import torch
        >>> from deqopt import JointProblem
        >>> problem = JointProblem(lambda z, x: 0.5 * z + x, lambda z, x: (z - 1).square().sum(1))
        >>> from deqopt.regularizers import JacobianPenalty
        >>> from deqopt.solvers import JointAnderson
        >>> eq = JointAnderson().solve(problem, torch.zeros(3, 2), torch.zeros(3, 2))
        >>> float(JacobianPenalty(probes=1000).penalty(problem, eq))  # the mean square of the gain, 0.5
        0.2...
    """

    name: ClassVar[str] = "jacobian"
    weight: float = 1.0
    probes: int = 1
    visits: int = 0

    def __post_init__(self) -> None:
        if not self.weight >= 0 or self.probes < 1 or self.visits < 0:
            raise ProblemError(
                "JacobianPenalty: weight must be 0 or larger, probes at least 1, visits at least 0; "
                f"got {self.weight}, {self.probes}, {self.visits}"
            )
        check_finite("JacobianPenalty", weight=self.weight)

    def penalty(self, problem: JointProblem, equilibrium: Equilibrium) -> Tensor:
        points = ((equilibrium.z, equilibrium.x), *equilibrium.visited)
        usable = equilibrium.usable
        return torch.stack([self._at(problem, z, x, usable) for z, x in points]).mean()

    def _at(self, problem: JointProblem, z: State, x: Tensor, usable: Tensor) -> Tensor:
        point = UsablePoint.of(problem, z, x.detach(), z, ~usable)
        z, x = leaf(point.z), point.x
        f_parts = tensors_of(point.problem.f(z, x))
        point.check(*f_parts)
        size = sum(part[0].numel() for part in f_parts)
        total = x.new_zeros(x.shape[0])
        for _ in range(self.probes):
            v = [torch.randn_like(part) for part in f_parts]
            pulled = torch.autograd.grad(
                f_parts, tensors_of(z), v, create_graph=True, allow_unused=True, materialize_grads=True
            )
            total = total + torch.stack([part.float().square().flatten(1).sum(1) for part in pulled]).sum(0)
        return total[usable].sum() / (self.probes * size * max(int(usable.sum()), 1))
