"""Broyden's good method (Broyden 1965) of a batch of independent rows, with limited memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deqopt.fixed_point.mixing import Mixing, MixingSolver, least_square, power_or_zero, solved_or_zero
from deqopt.memory import write_difference


class BroydenUpdates(Mixing):
    """The memory of Broyden's good method.

    To find the root of ``r(w) = T(w) - w``, it starts from the inverse Jacobian ``B_0 = -damping``. For each of the
    last ``history_size - 1`` differences s of points and y of residuals, oldest first, it makes the smallest change of
    the Jacobian, in the metric D, after which ``B y = s``. By Sherman and Morrison, this is

        B <- B + (s - B y) s^T D B / (s^T D B y)

    and proposes ``w - B r``. All updates at once (Byrd, Nocedal and Schnabel 1994, theorem 6.1, by Woodbury) are

        w - B r = w + damping r - P gamma,    (S^T D P - N) gamma = S^T D (damping r)

    where S are the differences s, P the differences of the damped steps ``w + damping r``, and N is the upper triangle
    of ``S^T D S`` with its diagonal. So an update that is dropped has no effect on the remaining updates. D weights the
    blocks (z, mu, x) by ``1 / |T^b(w)|^2``. Products are kept per block; a step reads S once and P twice. A row whose
    system is singular takes the damped step, until the difference that makes it singular is dropped.

    Example:
        >>> w = torch.zeros(3, 2)
        >>> memory = BroydenUpdates(w, history_size=5, widths=[2])
        >>> for _ in range(8):
        ...     w = memory.mix(w, torch.cos(w), damping=1.0)
        >>> bool((w - torch.cos(w)).abs().max() < 1e-3)
        True
    """

    def __init__(self, like: Tensor, history_size: int, widths: Sequence[int]) -> None:
        super().__init__(like, history_size, widths)
        self._moves, self._lengths = torch.zeros_like(self._proposals), torch.zeros_like(self._right)
        self._point, self._residual = torch.zeros_like(like), torch.zeros_like(like)
        self._steepest = torch.finfo(like.dtype).eps ** (-2 / 3)

    def _remember(self, slot: int, filled: int, w: Tensor, target: Tensor) -> Tensor:
        """The column of the newest difference is ``S^T (p - s) = S^T y``, the increase of ``S^T r``; its row, outside
        of N, is ``s^T P``."""
        residual = self._proposal - w
        change = (residual - self._residual) * self._seen
        self._moves = write_difference(self._moves, slot, w, self._point, self._seen)
        self._point, self._residual = w, residual
        move = self._moves[:, slot]
        right = self._per_block(self._moves[:, :filled], residual)
        column = right - self._right[:, :, :filled]
        if column.requires_grad:
            self._products = self._products.clone()
        self._products[:, :, :filled, slot] = column
        self._products[:, :, slot, :filled] = self._per_block(self._proposals[:, :filled], move)
        self._products[:, :, slot, slot] = self._sums(move * change)
        self._lengths[:, :, slot] = self._sums(move.detach().square())
        self._right = torch.nn.functional.pad(right, (0, self._slots - filled))
        return target

    def _coefficients(self, filled: int, weights: Tensor) -> Tensor:
        """gamma, (B, filled); zero where the system is singular up to rounding."""
        squares = torch.einsum("bk,bki->bi", weights.detach(), self._lengths[:, :, :filled])
        least = weights.detach().sum(1, keepdim=True) * least_square(self._proposal.dtype)
        unit = power_or_zero(squares, -0.5, least)
        matrix = torch.einsum("bk,bkij->bij", weights, self._products[:, :, :filled, :filled])
        right = unit * torch.einsum("bk,bki->bi", weights, self._right[:, :, :filled])
        empty = torch.diag_embed((unit == 0).to(matrix.dtype))
        system = unit.unsqueeze(2) * matrix * unit.unsqueeze(1) + empty
        return unit * solved_or_zero(system, right, self._steepest * right.detach().norm(dim=1))


@dataclass(frozen=True)
class Broyden(MixingSolver):
    """Broyden's good method for ``z = f(z)``: see :class:`MixingSolver` for its settings.

    Example:
        >>> Broyden(tol=1e-6).solve(torch.cos, torch.zeros(1, 2)).z
        tensor([[0.7391, 0.7391]])
    """

    def begin(self, w: Tensor) -> BroydenUpdates:
        return BroydenUpdates(w, self.history_size, [w.shape[1]])
