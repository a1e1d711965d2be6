"""The base of Anderson mixing and Broyden's method: a memory that computes the next point from ``w`` and ``T(w)``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deqopt.fixed_point.base import FixedPointSolver
from deqopt.iteration import Measured
from deqopt.memory import Memory, write_difference
from deqopt.ranges import at_least, positive_share
from deqopt.state import known_all

# The length of a block of the image counts as at least this share of its largest length so far. Otherwise a block that
# tends to zero, such as the multiplier of a perfect fit, would dominate the system.
FADED = 1e-4


class Mixing(Memory):
    """Remembers points w and their images T(w), and proposes ``p - P gamma``. p is the damped step
    ``w + damping (T(w) - w)``, P are the differences of the last damped steps, and the method defines gamma.

    Args:
        like: the rows to be mixed.
        history_size: number of remembered points, one more than that of differences; with 1 it is the damped step.
        widths: widths of the blocks; together they cover the row.
    """

    def __init__(self, like: Tensor, history_size: int, widths: Sequence[int]) -> None:
        super().__init__(like)
        batch, width = like.shape
        self._widths, self._slots, self._mixed = list(widths), history_size - 1, 0
        self._proposals, self._proposal = like.new_zeros(batch, self._slots, width), torch.zeros_like(like)
        self._products = like.new_zeros(batch, len(self._widths), self._slots, self._slots, dtype=torch.float64)
        self._right = like.new_zeros(batch, len(self._widths), self._slots, dtype=torch.float64)
        self._longest = like.new_zeros(batch, len(self._widths), dtype=torch.float64)
        self._seen = torch.zeros_like(self.rate)

    def mix(self, w: Tensor, target: Tensor, damping: Tensor | float) -> Tensor:
        """Remember ``T(w) = target`` and propose the next point; all (B, width). ``damping`` broadcasts to the rows."""
        proposal = self.damped(w, target, damping)
        if not self._slots:
            return proposal
        slot, filled = self._mixed % self._slots, min(self._mixed + 1, self._slots)
        self._mixed += 1
        self._proposals = write_difference(self._proposals, slot, proposal, self._proposal, self._seen)
        self._proposal = proposal
        image = self._remember(slot, filled, w, target)
        self._seen = torch.ones_like(self._seen)
        gamma = self._coefficients(filled, self._weights(image)).to(w.dtype)
        mixed = torch.baddbmm(proposal.unsqueeze(1), gamma.unsqueeze(1), self._proposals[:, :filled], alpha=-1)
        return mixed.squeeze(1)

    @abstractmethod
    def _remember(self, slot: int, filled: int, w: Tensor, target: Tensor) -> Tensor:
        """Enter the newest differences into ``slot``, and their products with the ``filled`` slots; the proposal is
        known. Returns the entries of the image, (B, sum of widths), by which blocks are weighted."""

    @abstractmethod
    def _coefficients(self, filled: int, weights: Tensor) -> Tensor:
        """gamma, (B, filled), for weights (B, blocks); zero where there is none."""

    def _weights(self, image: Tensor) -> Tensor:
        """The weights D, one per block, (B, blocks), for images T: ``1 / |T^b|^2``, or zero where the block is zero."""
        squares = self._sums(image.square())
        self._longest = torch.maximum(self._longest, squares.detach())
        return power_or_zero(torch.maximum(squares, FADED**2 * self._longest), -1.0, least_square(image.dtype))

    def _sums(self, entries: Tensor) -> Tensor:
        """The sum over each block, (B, blocks)."""
        return torch.stack([block.sum(1) for block in entries.split(self._widths, dim=1)], 1).double()

    def _per_block(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """The products of ``rows`` (B, n, width) and ``vectors`` (B, width) over each block, (B, blocks, n)."""
        pairs = zip(rows.split(self._widths, dim=2), vectors.split(self._widths, dim=1), strict=True)
        # with the factors the other way round, bmm is much slower on a CPU
        return torch.stack([torch.bmm(one.unsqueeze(1), some.mT).squeeze(1) for some, one in pairs], 1).double()


@dataclass(frozen=True)
class MixingSolver(FixedPointSolver[Mixing]):
    """Solvers of ``z = f(z)`` that remember earlier points.

    Args:
        history_size: number of points that are remembered.
        damping: share of the residual that is taken in directions without remembered differences, in (0, 1].
    """

    history_size: int = 6
    damping: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mixing(self.history_size, self.damping)

    @abstractmethod
    def begin(self, w: Tensor) -> Mixing: ...

    def step(self, at: Measured, memory: Mixing) -> Tensor:
        return memory.mix(at.point, at.image, self.damping)


def check_mixing(history_size: int, damping: float) -> None:
    """Raise ProblemError for invalid settings."""
    at_least(1, history_size=history_size)
    positive_share(damping=damping)


def least_square(dtype: torch.dtype) -> float:
    """A sum of squares in ``dtype`` that counts as zero: dividing by a smaller sum overflows in the backward pass."""
    info = torch.finfo(dtype)
    return info.tiny / info.eps


def power_or_zero(squares: Tensor, exponent: float, least: Tensor | float) -> Tensor:
    """``squares`` to a negative power; where they are at most ``least``, the result and its derivative are zero."""
    known = squares > least
    return torch.where(known, torch.where(known, squares, 1.0).pow(exponent), 0.0)


def solved_or_zero(matrix: Tensor, right: Tensor, longest: Tensor | float) -> Tensor:
    """The solution u of ``matrix u = right``, (B, n), row by row. Where no finite solution of at most the length
    ``longest`` is found, u and its derivative are zero."""
    solution, info = torch.linalg.solve_ex(matrix, right)
    length = solution.detach().norm(dim=1)
    usable = (info == 0) & length.isfinite() & (length <= longest)
    if solution.requires_grad and not known_all(usable):  # the derivative at a singular matrix would be NaN
        eye = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
        matrix = torch.where(usable[:, None, None], matrix, eye)
        solution, _ = torch.linalg.solve_ex(matrix, torch.where(usable[:, None], right, 0.0))
    return torch.where(usable[:, None], solution, 0.0)
