"""Secant tracking: predicts from remembered secants how the equilibrium moves when the input moves."""

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
    """:class:`Tracking` with predicted states, so that x can move at every evaluation.

    With plain updates, z and mu lag behind when x moves. But earlier evaluations show the effect of a move. Let
    ``s = [z | mu]`` with the residual ``r = [f | g_z] - s``. Let R be the differences of the last residuals, P those of
    the last images and X those of the last inputs, and d the coming move of x. Then

        gamma = argmin |r + R gamma|^2 + coupling |X gamma - d|^2,        s <- [f | g_z] + P gamma

    is the mixture of secants that explains the move d and leaves the smallest residual. Without a move it is Anderson
    mixing. The secants stay valid after a move because they contain x. The two terms are weighted such that R and X
    have equal weight at a coupling of 1.

    Args:
        history_size: number of points that are remembered.
        coupling: weight of the condition that the mixture explains the move of x.

    Example, with the problem and the start of :class:`deqopt.JointProblem`'s:
        >>> eq = SecantTracking(max_nfe=48, step_size=0.5).solve(problem, z0, x0)
        >>> bool((eq.x - 0.4).abs().max() < 0.05)
        True
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
    """The memory of :class:`Tracking`, and the secants."""

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
        # mix() subtracts its gamma, which is minus the gamma above.
        explained = (inputs @ self._move.double().unsqueeze(2)).squeeze(2)
        return matrix + weight[:, None, None] * squares, right - weight[:, None] * explained
