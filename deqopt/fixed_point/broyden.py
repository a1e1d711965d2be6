"""Broyden's good method (Broyden 1965) of a batch of independent rows, with limited memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deqopt.fixed_point.base import FixedPointSolver
from deqopt.fixed_point.mixing import Mixing, check_mixing, least_square, power_or_zero, solved_or_zero
from deqopt.memory import Memory, write_difference


class BroydenUpdates(Mixing):
    """The memory of Broyden's good method.

    For the root of ``r(w) = T(w) - w`` it begins at the inverse Jacobian ``B_0 = -damping``, and for each of the last
    ``memory - 1`` differences s of points and y of residuals, the oldest first, makes the least change of the Jacobian
    in the metric D after which ``B y = s``; by Sherman and Morrison,

        B <- B + (s - B y) s^T D B / (s^T D B y)

    and proposes ``w - B r``. All updates at once (Byrd, Nocedal and Schnabel 1994, theorem 6.1, by Woodbury) are

        w - B r = w + damping r - P gamma,    (S^T D P - N) gamma = S^T D (damping r)

    where S are the differences s, P those of the damped steps ``w + damping r``, and N is the upper triangle of
    ``S^T D S`` with its diagonal. So an update that is dropped leaves no trace in the others. D weights the blocks
    (z, mu, x) by ``1 / |T^b(w)|^2``. Products are kept a block; a step reads S once and P twice. A row whose system is
    singular takes the damped step, until what makes it so is dropped.

    Args:
        like: the rows to be mixed.
        memory: how many points are remembered, one more than differences are; with 1 it is the damped step.
        widths: of the blocks; they cover the row.
    """

    def __init__(self, like: Tensor, memory: int, widths: Sequence[int]) -> None:
        super().__init__(like, len(widths))
        batch, width = like.shape
        self._widths, self._slots, self._mixed = list(widths), memory - 1, 0
        self._moves, self._proposals = (like.new_zeros(batch, self._slots, width) for _ in range(2))
        self._matrix = like.new_zeros(batch, len(self._widths), self._slots, self._slots, dtype=torch.float64)
        self._lengths, self._right = (torch.zeros_like(self._matrix.diagonal(dim1=2, dim2=3)) for _ in range(2))
        self._point, self._residual, self._proposal = (torch.zeros_like(like) for _ in range(3))
        self._seen = torch.zeros_like(like[:, :1])
        self._steepest = torch.finfo(like.dtype).eps ** (-2 / 3)

    def mix(self, w: Tensor, target: Tensor, damping: Tensor | float) -> Tensor:
        proposal = self.damped(w, target, damping)
        if not self._slots:
            return proposal
        residual = proposal - w
        slot, filled = self._mixed % self._slots, min(self._mixed + 1, self._slots)
        self._mixed += 1
        self._moves = write_difference(self._moves, slot, w, self._point, self._seen)
        self._proposals = write_difference(self._proposals, slot, proposal, self._proposal, self._seen)
        self._multiply(slot, filled, residual, (residual - self._residual) * self._seen)
        self._point, self._residual, self._proposal = w, residual, proposal
        self._seen = torch.ones_like(self._seen)
        squares = torch.stack([block.square().sum(1).double() for block in target.split(self._widths, dim=1)], 1)
        gamma = self._coefficients(filled, self._weights(squares, target.dtype)).to(w.dtype)
        mixed = torch.baddbmm(proposal.unsqueeze(1), gamma.unsqueeze(1), self._proposals[:, :filled], alpha=-1)
        return mixed.squeeze(1)

    def _multiply(self, slot: int, filled: int, residual: Tensor, change: Tensor) -> None:
        """Enter the products of the newest difference.

        Its column is ``S^T (p - s) = S^T y``, by how much ``S^T r`` grew; its row, outside of N, ``s^T P``.
        """
        rights, rows, corners, lengths, start = [], [], [], [], 0
        for width in self._widths:
            block = slice(start, start + width)
            start += width
            move = self._moves[:, slot, block]
            rights.append(_products(self._moves[:, :filled, block], residual[:, block]))
            rows.append(_products(self._proposals[:, :filled, block], move))
            corners.append((move * change[:, block]).sum(1))
            lengths.append(move.detach().square().sum(1))
        right, row, corner, length = (torch.stack(parts, 1).double() for parts in (rights, rows, corners, lengths))
        column = right - self._right[:, :, :filled]
        if column.requires_grad:
            self._matrix = self._matrix.clone()
        self._matrix[:, :, :filled, slot] = column
        self._matrix[:, :, slot, :filled] = row
        self._matrix[:, :, slot, slot] = corner
        self._lengths[:, :, slot] = length
        self._right = torch.nn.functional.pad(right, (0, self._slots - filled))

    def _coefficients(self, filled: int, weights: Tensor) -> Tensor:
        """gamma, (B, filled); zero where the system is singular, up to what rounding makes of it."""
        squares = torch.einsum("bk,bki->bi", weights.detach(), self._lengths[:, :, :filled])
        least = weights.detach().sum(1, keepdim=True) * least_square(self._proposal.dtype)
        unit = power_or_zero(squares, -0.5, least)
        matrix = torch.einsum("bk,bkij->bij", weights, self._matrix[:, :, :filled, :filled])
        right = unit * torch.einsum("bk,bki->bi", weights, self._right[:, :, :filled])
        empty = torch.diag_embed((unit == 0).to(matrix.dtype))
        system = unit.unsqueeze(2) * matrix * unit.unsqueeze(1) + empty
        return unit * solved_or_zero(system, right, self._steepest * right.detach().norm(dim=1))


def _products(rows: Tensor, vector: Tensor) -> Tensor:
    """``rows`` (B, n, width) times ``vector`` (B, width), as (B, n). The other way, bmm is 5 times slower."""
    return torch.bmm(vector.unsqueeze(1), rows.mT).squeeze(1)


@dataclass(frozen=True)
class Broyden(FixedPointSolver):
    """Broyden's good method for ``z = f(z)``.

    Args:
        memory: how many points are remembered.
        damping: in (0, 1]: the share of the residual that is taken in directions in which nothing is known yet.
    """

    memory: int = 6
    damping: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mixing(self.memory, self.damping)

    def begin(self, w: Tensor) -> BroydenUpdates:
        return BroydenUpdates(w, self.memory, [w.shape[1]])

    def step(self, w: Tensor, target: Tensor, memory: Memory) -> Tensor:
        assert isinstance(memory, Mixing)
        return memory.mix(w, target, self.damping)
