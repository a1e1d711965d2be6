"""Secant tracking: states that know from remembered secants where the equilibrium goes when the input moves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqopt.fixed_point.anderson import AndersonMixing
from deqopt.fixed_point.mixing import least_square, power_or_zero
from deqopt.memory import write_difference
from deqopt.ranges import at_least, positive
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
        history_size: how many points are remembered.
        coupling: how strictly the mixture must explain the move of x.
    """

    inner: int = 1
    history_size: int = 4
    coupling: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(2, history_size=self.history_size)
        positive(coupling=self.coupling)

    def begin(self, system: JointSystem, states: Tensor, x: Tensor) -> SecantMemory:
        return SecantMemory(states, x, self.history_size, self.coupling, system.widths[:2])


class SecantMemory(TrackingMemory):
    """What :class:`Tracking` remembers, and the secants."""

    def __init__(self, states: Tensor, x: Tensor, history_size: int, coupling: float, widths: list[int]) -> None:
        super().__init__(x)
        self.secants = CoupledMixing(states, x, history_size, coupling, widths)

    def follow(self, at: JointEvaluation, moved: Tensor) -> Tensor:
        return self.secants.follow(at, moved - at.x)


class CoupledMixing(AndersonMixing):
    """Anderson mixing of the states whose mixture must explain a given move of the input."""

    RIDGE = 1e-6

    def __init__(self, states: Tensor, x: Tensor, history_size: int, coupling: float, widths: list[int]) -> None:
        super().__init__(states, history_size, self.RIDGE, widths)
        self._coupling = coupling
        self._inputs = x.new_zeros(len(x), history_size - 1, x.shape[1])
        self._input, self._move = torch.zeros_like(x), torch.zeros_like(x)

    def follow(self, at: JointEvaluation, move: Tensor) -> Tensor:
        """Remember an evaluation and predict the states at ``x + move``."""
        slot = self._mixed % self._slots
        self._inputs = write_difference(self._inputs, slot, at.x, self._input, self._seen)
        self._input, self._move = at.x, move
        return self.mix(at.states, at.image, 1.0)

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
