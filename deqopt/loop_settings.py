"""The settings of the loop that all solvers share: budget, tolerances, restarts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from deqopt.errors import ProblemError, check_finite, check_kinds
from deqopt.ranges import at_least, not_negative
from deqopt.state import known_all

# Vectors of float32 that are shorter than this may have entries whose squares underflow to zero.
UNDERFLOWS = 1e-14


class Norm(Enum):
    """The norm in which residuals are measured."""

    L2 = 2
    LINF = float("inf")

    def of(self, rows: Tensor) -> Tensor:
        """(B,) norms of the rows (B, width); in double precision where squares of float32 may underflow."""
        norms = torch.linalg.vector_norm(rows, ord=self.value, dim=1)
        small = norms < UNDERFLOWS
        if rows.dtype is not torch.float32 or known_all(~small):
            return norms
        exact = torch.linalg.vector_norm(rows, ord=self.value, dim=1, dtype=torch.float64)
        return torch.where(small, exact.to(rows.dtype), norms)


@dataclass(frozen=True)
class LoopSettings:
    """The settings of the loop that all solvers share.

    Args:
        max_nfe: budget of evaluations per sample.
        tol: relative tolerance: a sample has converged once the relative residual of each block is at most this.
        atol: absolute tolerance: a block whose absolute residual is at most this meets the tolerance too; 0 to use the
            relative tolerance alone.
        norm: norm in which residuals are measured.
        restarts: number of times that a sample may start again from its best point, with half the step, after its
            iterates became NaN, grew without bound or settled at a worse point. If it does not converge afterwards,
            its status reports this.

    Raises:
        ProblemError: an invalid setting.
    """

    max_nfe: int = 100
    tol: float = 1e-4
    atol: float = 0.0
    norm: Norm = Norm.L2
    restarts: int = 2

    def __post_init__(self) -> None:
        check_kinds(self)
        at_least(1, max_nfe=self.max_nfe)
        not_negative(tol=self.tol, atol=self.atol, restarts=self.restarts)
        if self.atol and not self.tol:
            raise ProblemError(
                f"atol needs a tol larger than 0, because residuals are reported as relative: got tol {self.tol}"
            )
        check_finite(**vars(self))

    def relative(self, residual: Tensor, size: Tensor) -> Tensor:
        """``residual / max(size, atol / tol)``: at most ``tol`` if either of the two tolerances is met."""
        floor = self.atol / self.tol if self.atol else torch.finfo(size.dtype).tiny
        return residual / size.clamp_min(floor)
