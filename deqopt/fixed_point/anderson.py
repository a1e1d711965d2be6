"""Anderson mixing (Anderson 1965; types I and II in the sense of Fang and Saad 2009) of a batch of independent rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from deqopt.fixed_point.mixing import Mixing, MixingSolver, least_square, power_or_zero, solved_or_zero
from deqopt.memory import write_difference
from deqopt.ranges import not_negative


class MixingType(Enum):
    """The secant condition that the mixture satisfies (Fang and Saad 2009)."""

    I = "I"  # noqa: E741
    """``S^T (r - Y gamma) = 0``: the Jacobian is approximated, as by Broyden's good update."""
    II = "II"
    """``Y^T (r - Y gamma) = 0``: the inverse Jacobian is approximated; the residual is minimised."""


class AndersonMixing(Mixing):
    """The memory of Anderson mixing.

    Let ``r_k = T(w_k) - w_k`` be the residuals of the last ``history_size`` points, Y the differences of the residuals
    and S the differences of the points. The method solves

        Y^T D (r - Y gamma) = 0   (type II)       S^T D (r - Y gamma) = 0   (type I)

    and proposes ``w + damping r - (S + damping Y) gamma``. D weights the blocks (z, mu, x) by ``1 / |T^b(w)|^2``. Both
    systems are solved for columns of unit length with Tikhonov regularisation, so that an empty column has no effect.
    Of wide blocks, D uses only a sample of the entries at regular intervals: a few thousand entries determine the few
    coefficients as well as all entries do. So S and Y are kept for these entries alone. Products are kept per block,
    and only the newest are computed. Most of the cost of a step is to read ``S + damping Y`` once.

    Args:
        like: the rows to be mixed.
        history_size: number of points that are mixed, one more than the number of remembered differences; with 1 it is
            the damped step.
        ridge: strength of the regularisation, relative to the columns.
        widths: widths of the blocks; together they cover the row.

    Example:
        >>> w = torch.zeros(3, 2)
        >>> memory = AndersonMixing(w, history_size=5, ridge=0.0, widths=[2])
        >>> for _ in range(8):
        ...     w = memory.mix(w, torch.cos(w), damping=1.0)
        >>> bool((w - torch.cos(w)).abs().max() < 1e-3)
        True
    """

    def __init__(
        self, like: Tensor, history_size: int, ridge: float, widths: Sequence[int], kind: MixingType = MixingType.II
    ) -> None:
        super().__init__(like, history_size, widths)
        self._kind, self._ridge, self._all_widths = kind, ridge, self._widths
        self._strides = [sampling_stride(width) for width in self._widths]
        self._widths = [len(range(0, width, stride)) for width, stride in zip(widths, self._strides, strict=True)]
        self._changes = like.new_zeros(len(like), self._slots, sum(self._widths))
        self._moves = torch.zeros_like(self._changes) if kind is MixingType.I else self._changes[:, :0]
        self._squares = torch.stack([torch.zeros_like(self._right)] * 2, 1)
        self._point, self._residual = (torch.zeros_like(self._sampled(like)) for _ in range(2))

    def _remember(self, slot: int, filled: int, w: Tensor, target: Tensor) -> Tensor:
        point, image = self._sampled(w), self._sampled(target)
        residual = image - point
        self._changes = write_difference(self._changes, slot, residual, self._residual, self._seen)
        if self._kind is MixingType.I:
            self._moves = write_difference(self._moves, slot, point, self._point, self._seen)
        self._point, self._residual = point, residual
        self._multiply(slot, filled)
        return image

    def _sampled(self, rows: Tensor) -> Tensor:
        """The entries of the rows (B, width) that D uses."""
        if max(self._strides) == 1:
            return rows
        blocks = rows.split(self._all_widths, dim=1)
        return torch.cat([block[:, ::stride] for block, stride in zip(blocks, self._strides, strict=True)], dim=1)

    def _multiply(self, slot: int, filled: int) -> None:
        """Enter the products of the newest difference, and update the products of the residual.

        The residual grew by the newest change. So its product with an older difference grew by the product of this
        change with that difference.
        """
        left = self._moves if self._kind is MixingType.I else self._changes
        column = row = self._per_block(left[:, :filled], self._changes[:, slot])
        if column.requires_grad:
            self._products, self._squares = self._products.clone(), self._squares.clone()
        if left is self._moves:
            row = self._per_block(self._changes[:, :filled], self._moves[:, slot])
            for side, newest in enumerate((self._moves[:, slot], self._changes[:, slot])):
                self._squares[:, side, :, slot] = self._sums(newest.square())
        self._products[:, :, :filled, slot] = column
        self._products[:, :, slot, :filled] = row
        self._right = self._right + torch.nn.functional.pad(column, (0, self._slots - filled))
        self._right[:, :, slot] = self._sums(left[:, slot] * self._residual)

    def _normal_equations(self, filled: int, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Matrix (B, filled, filled) and right-hand side (B, filled) of the system that gamma solves."""
        matrix = torch.einsum("bk,bkij->bij", weights, self._products[:, :, :filled, :filled])
        return matrix, torch.einsum("bk,bki->bi", weights, self._right[:, :, :filled])

    def _coefficients(self, filled: int, weights: Tensor) -> Tensor:
        """gamma, (B, filled); zero where the system has no finite solution."""
        matrix, right = self._normal_equations(filled, weights)
        squares = [matrix.diagonal(dim1=1, dim2=2)] * 2
        if self._kind is MixingType.I:
            squares = list(torch.einsum("bk,bski->sbi", weights, self._squares[..., :filled]))
        least = weights.detach().sum(1, keepdim=True) * least_square(self._proposal.dtype)
        rows, columns = (power_or_zero(one, -0.5, least) for one in squares)
        matrix, right = rows.unsqueeze(2) * matrix * columns.unsqueeze(1), rows * right
        eye = torch.eye(filled, dtype=matrix.dtype, device=matrix.device)
        if self._kind is MixingType.I:
            matrix, right = matrix.mT @ matrix, (matrix.mT @ right.unsqueeze(2)).squeeze(2)
        return columns * solved_or_zero(matrix + max(self._ridge, _SMALLEST_RIDGE) * eye, right, torch.inf)


def sampling_stride(width: int) -> int:
    """The stride at which D uses the entries of a block: all entries up to 8192, about 2000 to 4000 of wider blocks.

    No stride has a factor that is common in image sizes, so that the entries do not line up in columns.
    """
    if width <= 8192:
        return 1
    stride = max(width // 4096, 11)
    while any(stride % factor == 0 for factor in (2, 3, 5, 7)):
        stride += 1
    return stride


# An empty column must not make the system singular.
_SMALLEST_RIDGE = 1e-14


@dataclass(frozen=True)
class Anderson(MixingSolver):
    """Anderson mixing for ``z = f(z)``: see :class:`MixingSolver` for its first settings.

    Args:
        ridge: regularisation of the mixture, relative to differences of unit length.
        kind: type of mixing, I or II.

    Example:
        >>> Anderson(tol=1e-6).solve(torch.cos, torch.zeros(1, 2)).z
        tensor([[0.7391, 0.7391]])
    """

    ridge: float = 1e-8
    kind: MixingType = MixingType.II

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(ridge=self.ridge)

    def begin(self, w: Tensor) -> AndersonMixing:
        return AndersonMixing(w, self.history_size, self.ridge, [w.shape[1]], self.kind)
