"""A penalty on the largest gain of the adjoint iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deqopt.equilibrium import Equilibrium
from deqopt.problem import JointProblem
from deqopt.ranges import not_negative
from deqopt.regularizers.base import Regularizer, squares
from deqopt.state import leaf, tensors_of
from deqopt.usable import UsablePoint


@dataclass(frozen=True)
class SpectralPenalty(Regularizer):
    """``|(d_z f)^T u|^2`` per sample, for the unit vector u along which the iteration of the multiplier grows most.

    ``mu <- d_z J + (d_z f)^T mu`` is already a power iteration: its growing part turns mu to the dominant direction.
    So u is the multiplier of the solve after ``products`` more products with ``(d_z f)^T``, and the penalty tends to
    the square of the spectral radius. :class:`JacobianPenalty` averages over all directions. It hardly depends on the
    few directions with a gain above 1, which in a classifier are those of the classes. Miyato et al. (Spectral
    normalization, 2018) keep a power iteration for the weights across training steps; here the solve provides it.

    Args:
        weight: weight of the penalty in the loss.
        products: number of products of the power iteration after the solve, 0 or more.

    Example, with the problem and the start of :class:`deqopt.JointProblem`'s:
        >>> from deqopt.regularizers import SpectralPenalty
        >>> from deqopt.solvers import JointAnderson
        >>> eq = JointAnderson().solve(problem, z0, x0)
        >>> penalty = SpectralPenalty(weight=2.0).penalty(problem, eq)
    """

    name: ClassVar[str] = "spectral"
    weight: float = 1.0
    products: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative("SpectralPenalty", products=self.products)

    def penalty(self, problem: JointProblem, equilibrium: Equilibrium) -> Tensor:
        lost = ~equilibrium.usable
        point = UsablePoint.of_solution(problem, equilibrium, lost)
        z = leaf(point.z)
        f_parts = tensors_of(point.problem.f(z, point.x))
        point.check(*f_parts)
        u = list(tensors_of(point.mu))
        for left in range(self.products, -1, -1):
            u = [part.detach() for part in _unit(u)]
            cotangents = [part.to(f_part.dtype) for part, f_part in zip(u, f_parts, strict=True)]
            how = {"retain_graph": True, "create_graph": left == 0, "allow_unused": True, "materialize_grads": True}
            u = list(torch.autograd.grad(f_parts, tensors_of(z), cotangents, **how))
        return squares(u)[~lost].sum() / max(int((~lost).sum()), 1)


def _unit(parts: list[Tensor]) -> list[Tensor]:
    """The same vector a sample of length one; zero where it is zero."""
    length = squares(parts)
    shrink = torch.where(length > 0, length.clamp_min(torch.finfo(length.dtype).tiny).rsqrt(), 0.0)
    return [part * shrink.reshape(-1, *[1] * (part.dim() - 1)) for part in parts]
