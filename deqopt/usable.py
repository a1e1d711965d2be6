"""Keeps samples that are NaN or infinite away from all other samples: 0 times NaN is NaN in the gradient to theta."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deqopt.batch import pick
from deqopt.equilibrium import Equilibrium
from deqopt.errors import NonFiniteError
from deqopt.problem import JointProblem
from deqopt.state import State, state_of, tensors_of, zero_where


@dataclass(frozen=True)
class UsablePoint:
    """A point of a problem at which gradients to theta may be taken.

    A lost sample has been replaced by a neighbour that is not lost: its rows of z, x and mu, of the problem's ``data``
    and of the feasible set are those of the neighbour. Its gradient should not be used.

    Attributes:
        lost: (B,) which samples have been replaced; None for none.
    """

    problem: JointProblem
    z: State
    x: Tensor
    mu: State
    lost: Tensor | None = None

    @classmethod
    def of(cls, problem: JointProblem, z: State, x: Tensor, mu: State, lost: Tensor) -> UsablePoint:
        """The point ``(z, x, mu)`` without what is ``lost``, (B,). Asks an accelerator whether anything is."""
        if not bool(lost.any()):
            return cls(problem, z, x, mu)
        rows = stand_ins(lost)
        all_lost = lost & lost.all()
        z, mu = (zero_where(all_lost, state_of((part[rows] for part in tensors_of(s)), s)) for s in (z, mu))
        (inputs,) = tensors_of(zero_where(all_lost, x[rows]))
        return cls(with_rows(problem, rows, x.dim()), z, inputs, mu, lost)

    @classmethod
    def of_solution(cls, problem: JointProblem, equilibrium: Equilibrium, lost: Tensor) -> UsablePoint:
        """Where a solve ended, detached, without what is ``lost``, (B,)."""
        z, mu = (state_of((part.detach() for part in tensors_of(s)), s) for s in (equilibrium.z, equilibrium.mu))
        return cls.of(problem, z, equilibrium.x.detach(), mu, lost)

    def check(self, *outputs: Tensor) -> None:
        """Raise NonFiniteError where ``outputs``, (B, ...), of a replaced sample are not finite all the same, and there
        are others to be protected from it. Where all samples are lost, the loss says so."""
        if self.lost is None or bool(self.lost.all()):
            return
        finite = finite_rows(*outputs)
        spoiled = (self.lost & ~finite).nonzero()[:, 0].tolist()
        if spoiled:
            raise NonFiniteError(
                "cell or objective close over values that are NaN or infinite for the samples "
                f"{', '.join(map(str, spoiled))}, which would make the gradient of all other samples NaN: pass the "
                "values as JointProblem(data=...), or leave these samples out"
            )

    def without_lost(self, rows: Tensor) -> Tensor:
        """(B, ...) with zeros in the samples that are lost."""
        return rows if self.lost is None else tensors_of(zero_where(self.lost, rows))[0]


def finite_rows(*parts: Tensor) -> Tensor:
    """(B,) whether all entries of a sample are finite in all of ``parts``, (B, ...); by their sums."""
    sums = [part.detach().reshape(part.shape[0], part.shape[1:].numel()).sum(1) for part in parts]
    return torch.stack(sums).isfinite().all(0)


def stand_ins(lost: Tensor) -> Tensor:
    """(B,) for every sample the index of a sample that is not ``lost``: its own index, or that of a neighbour."""
    index = torch.arange(len(lost), device=lost.device)
    before = torch.where(lost, -1, index).cummax(0).values
    return torch.where(before < 0, (~lost).long().argmax(), before)


def with_rows(problem: JointProblem, rows: Tensor, dim: int) -> JointProblem:
    """The problem of the samples with the indices ``rows``, (B,), as far as it is not closed over; x has ``dim``
    dimensions."""
    return replace(
        problem,
        feasible=problem.feasible.pick(rows, dim) or problem.feasible,
        data=None if problem.data is None else pick(problem.data, rows),
    )
