"""Jacobian penalty (Bai, Koltun, Kolter: Stabilizing equilibrium models by Jacobian regularization, 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deqopt.equilibrium import Equilibrium
from deqopt.problem import JointProblem
from deqopt.ranges import at_least
from deqopt.regularizers.base import Regularizer, squares
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

    Example, with the problem and the start of :class:`deqopt.JointProblem`'s:
        >>> from deqopt.regularizers import JacobianPenalty
        >>> from deqopt.solvers import JointAnderson
        >>> eq = JointAnderson().solve(problem, z0, x0)
        >>> JacobianPenalty(probes=1000).penalty(problem, eq).item()  # the mean square of the gain, 0.5
        0.2...
    """

    name: ClassVar[str] = "jacobian"
    weight: float = 1.0
    probes: int = 1
    visits: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, "JacobianPenalty", probes=self.probes)

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
            total = total + squares(pulled)
        return total[usable].sum() / (self.probes * size * max(int(usable.sum()), 1))
