"""Anderson mixing (Anderson 1965; type II in the sense of Fang and Saad 2009), for a batch of independent rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.fixed_point.base import FixedPointSolver


class AndersonMixing:
    """The memory of Anderson mixing.

    With residuals ``r_i = T(w_i) - w_i`` of the last ``memory`` points, it solves

        alpha = argmin sum_b |sum_i alpha_i r_i^b|^2 / s_b^2 + ridge |alpha|^2    subject to  sum alpha = 1

    and proposes ``sum_i alpha_i (w_i + damping r_i)``. The blocks b (z, mu, x) are weighted by their present scale s_b.
    Gram matrices are kept a block and only their newest row is computed, so that one step reads the memory
    twice: once for that row, once for the mixture.

    Args:
        memory: how many points are mixed.
        ridge: relative to the mean of the Gram matrix's diagonal.
        widths: of the blocks; they cover the row.
    """

    def __init__(self, like: Tensor, memory: int, ridge: float, widths: Sequence[int]) -> None:
        batch, width = like.shape
        self._ridge = ridge
        self._widths = list(widths)
        self._residuals = like.new_zeros(batch, memory, width)
        self._proposals = like.new_zeros(batch, memory, width)
        self._grams = like.new_zeros(batch, len(self._widths), memory, memory, dtype=torch.float64)
        self._count = 0

    def mix(self, w: Tensor, target: Tensor, damping: Tensor | float) -> Tensor:
        """Remember ``T(w) = target`` and return the mixed proposal, (B, width)."""
        memory = self._residuals.shape[1]
        slot, filled = self._count % memory, min(self._count + 1, memory)
        self._count += 1
        residual = target - w
        self._residuals[:, slot] = residual
        self._proposals[:, slot] = torch.addcmul(w, residual, torch.as_tensor(damping, dtype=w.dtype, device=w.device))
        scales = []
        start = 0
        for b, width in enumerate(self._widths):
            block = residual[:, start : start + width]
            row = torch.bmm(self._residuals[:, :filled, start : start + width], block.unsqueeze(2)).squeeze(2)
            self._grams[:, b, slot, :filled] = self._grams[:, b, :filled, slot] = row.double()
            scales.append(target[:, start : start + width].square().sum(1).double())
            start += width
        weights = 1 / torch.stack(scales, 1).clamp_min(torch.finfo(torch.float64).tiny ** 0.5)
        gram = (weights[:, :, None, None] * self._grams[:, :, :filled, :filled]).sum(1)
        alpha = self._coefficients(gram, slot).to(w.dtype)
        return torch.bmm(alpha.unsqueeze(1), self._proposals[:, :filled]).squeeze(1)

    def _coefficients(self, gram: Tensor, newest: int) -> Tensor:
        filled = gram.shape[1]
        diagonal = gram.diagonal(dim1=1, dim2=2)
        ridge = self._ridge * diagonal.mean(1) + torch.finfo(gram.dtype).tiny ** 0.5
        eye = torch.eye(filled, dtype=gram.dtype, device=gram.device)
        solution, info = torch.linalg.solve_ex(gram + ridge[:, None, None] * eye, torch.ones_like(diagonal))
        total = solution.sum(1, keepdim=True)
        alpha = solution / total
        usable = (info == 0) & alpha.isfinite().all(1)
        return torch.where(usable[:, None], alpha, eye[newest].expand_as(alpha))


@dataclass(frozen=True)
class Anderson(FixedPointSolver):
    """Anderson mixing for ``z = f(z)``.

    Args:
        memory: how many points are mixed.
        damping: in (0, 1]: the share of the new residual in the mixture.
        ridge: regularises the mixture, relative to the residuals' mean square.
    """

    memory: int = 6
    damping: float = 1.0
    ridge: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mixing(self.memory, self.damping, self.ridge)

    def stepper(self, w: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        mixing = AndersonMixing(w, self.memory, self.ridge, [w.shape[1]])
        return lambda w, target: mixing.mix(w, target, self.damping)


def check_mixing(memory: int, damping: float, ridge: float) -> None:
    """Raise ProblemError for settings of the mixing that cannot be meant."""
    if memory < 1:
        raise ProblemError(f"memory must be at least 1, got {memory}")
    if not 0 < damping <= 1:
        raise ProblemError(f"damping must be in (0, 1], got {damping}")
    if not ridge >= 0:
        raise ProblemError(f"ridge must be 0 or larger, got {ridge}")
