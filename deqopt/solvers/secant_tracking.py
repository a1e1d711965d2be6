"""Secant tracking: states that know from remembered secants where the equilibrium goes when the input moves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.fixed_point.anderson import AndersonMixing
from deqopt.fixed_point.mixing import least_square, power_or_zero
from deqopt.memory import write_difference
from deqopt.solvers.system import JointEvaluation, JointSystem
from deqopt.solvers.tracking import Tracking, TrackingMemory


@dataclass(frozen=True)
class SecantTracking(Tracking):
    """:class:`Tracking` whose states are predicted, so that x can move at every evaluation.

    A move of x spoils plain updates: z and mu lag behind. But earlier evaluations tell what a move does. With
    ``s = [z | mu]``, its residual ``r = [f | g_z] - s``, the differences R of the last residuals, P of the last images
    and X of the last inputs, and the coming move d of x,

        gamma = argmin |r + R gamma|^2 + coupling |X gamma - d|^2,        s <- [f | g_z] + P gamma

    is the mixture of secants that explains d and leaves the least residual behind it. Without a move it is Anderson
    mixing; the secants survive the move because x is part of them. The two terms are weighted so that R and X count
    alike at a coupling of 1.

    Args:
        memory: how many points are remembered.
        coupling: how strictly the mixture must explain the move of x.
    """

    inner: int = 1
    memory: int = 4
    coupling: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory < 2:
            raise ProblemError(f"memory must be at least 2, got {self.memory}")
        if not self.coupling > 0:
            raise ProblemError(f"coupling must be larger than 0, got {self.coupling}")

    def begin(self, system: JointSystem, w: Tensor) -> SecantMemory:
        return SecantMemory(w, self.memory, self.coupling, system.widths)

    def follow(self, w: Tensor, evaluation: JointEvaluation, moved: Tensor, memory: TrackingMemory) -> Tensor:
        assert isinstance(memory, SecantMemory)
        states, x = w.split([evaluation.image.shape[1], moved.shape[1]], dim=1)
        return memory.secants.follow(states, evaluation.image, x, moved - x)


class SecantMemory(TrackingMemory):
    """What :class:`Tracking` remembers, and the secants."""

    def __init__(self, w: Tensor, memory: int, coupling: float, widths: list[int]) -> None:
        super().__init__(w, widths[-1])
        self.secants = CoupledMixing(w, memory, coupling, widths)


class CoupledMixing(AndersonMixing):
    """Anderson mixing of the states whose mixture must explain a given move of the input."""

    RIDGE = 1e-6

    def __init__(self, w: Tensor, memory: int, coupling: float, widths: list[int]) -> None:
        super().__init__(w[:, : -widths[-1]], memory, self.RIDGE, widths[:-1])
        self._coupling = coupling
        self._inputs = w.new_zeros(len(w), memory - 1, widths[-1])
        self._input, self._move = (torch.zeros_like(w[:, -widths[-1] :]) for _ in range(2))

    def follow(self, states: Tensor, image: Tensor, x: Tensor, move: Tensor) -> Tensor:
        """Remember ``image`` at ``(states, x)`` and predict the states at ``x + move``."""
        slot = self._mixed % self._slots
        self._inputs = write_difference(self._inputs, slot, x, self._input, self._seen)
        self._input, self._move = x, move
        return self.mix(states, image, 1.0)

    def _normal_equations(self, filled: int, weights: Tensor) -> tuple[Tensor, Tensor]:
        matrix, right = super()._normal_equations(filled, weights)
        inputs = self._inputs[:, :filled].double()
        squares = inputs @ inputs.mT
        size = squares.diagonal(dim1=1, dim2=2).sum(1)
        trace = matrix.diagonal(dim1=1, dim2=2).sum(1)
        weight = self._coupling * trace * power_or_zero(size, -1.0, least_square(self._inputs.dtype))
        # mix() subtracts its gamma, which is minus the one above.
        explained = (inputs @ self._move.double().unsqueeze(2)).squeeze(2)
        return matrix + weight[:, None, None] * squares, right - weight[:, None] * explained
