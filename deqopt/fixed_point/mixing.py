"""What Anderson mixing and Broyden's method share: a memory that turns ``w`` and ``T(w)`` into the next point."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.memory import Memory
from deqopt.state import known_all

# A block of the image that has shrunk counts as at least this share of the longest that it was. Else one that tends to
# zero, as the multiplier of a perfect fit, would be all that is solved for.
FADED = 1e-4


class Mixing(Memory):
    """Remembers points and their images.

    Args:
        like: the rows to be mixed.
        blocks: of which a row is made.
    """

    def __init__(self, like: Tensor, blocks: int) -> None:
        super().__init__(like)
        self._longest = like.new_zeros(len(like), blocks, dtype=torch.float64)

    def _weights(self, squares: Tensor, dtype: torch.dtype) -> Tensor:
        """D, a number a block, for images T of these squares, (B, blocks) both: ``1 / |T^b|^2``, zero for zeros.

        Args:
            dtype: in which the squares were summed.
        """
        self._longest = torch.maximum(self._longest, squares.detach())
        return power_or_zero(torch.maximum(squares, FADED**2 * self._longest), -1.0, least_square(dtype))

    @abstractmethod
    def mix(self, w: Tensor, target: Tensor, damping: Tensor | float) -> Tensor:
        """Remember ``T(w) = target`` and propose the next point; all (B, width). ``damping`` broadcasts to the rows."""


def check_mixing(memory: int, damping: float) -> None:
    """Raise ProblemError for settings that cannot be meant."""
    if memory < 1:
        raise ProblemError(f"memory must be at least 1, got {memory}")
    if not 0 < damping <= 1:
        raise ProblemError(f"damping must be in (0, 1], got {damping}")


def least_square(dtype: torch.dtype) -> float:
    """A sum of squares in ``dtype`` that counts as zero: one over a smaller one overflows on its way back."""
    info = torch.finfo(dtype)
    return info.tiny / info.eps


def power_or_zero(squares: Tensor, exponent: float, least: Tensor | float) -> Tensor:
    """``squares`` to a negative power; zero where they are at most ``least``, and so is the derivative there."""
    known = squares > least
    return torch.where(known, torch.where(known, squares, 1.0).pow(exponent), 0.0)


def solved_or_zero(matrix: Tensor, right: Tensor, longest: Tensor | float) -> Tensor:
    """u of ``matrix u = right``, (B, n), row by row; zero, and so is the derivative, where none is finite and at most
    ``longest``."""
    solution, info = torch.linalg.solve_ex(matrix, right)
    length = solution.detach().norm(dim=1)
    usable = (info == 0) & length.isfinite() & (length <= longest)
    if solution.requires_grad and not known_all(usable):  # the derivative of an inverse that is none would be NaN
        eye = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
        matrix = torch.where(usable[:, None, None], matrix, eye)
        solution, _ = torch.linalg.solve_ex(matrix, torch.where(usable[:, None], right, 0.0))
    return torch.where(usable[:, None], solution, 0.0)
