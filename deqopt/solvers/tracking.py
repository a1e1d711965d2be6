"""Tracking: plain updates follow the equilibrium while the input takes normalised steps that shrink to zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.memory import Memory
from deqopt.ranges import at_least, not_negative, positive, share_below_one
from deqopt.solvers.base import JointSolver
from deqopt.solvers.system import JointEvaluation, JointSystem
from deqopt.state import unit


class TrackingMemory(Memory):
    """Progress of a solve: all evaluations, those since the last move of x, (B, 1), and that move, (B, width of x)."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.evaluations = 0
        self.since_move = torch.zeros_like(self.rate)
        self.velocity = torch.zeros_like(x)

    def follow(self, at: JointEvaluation, moved: Tensor) -> Tensor:
        """The next ``[z | mu]`` when x moves from its present value to ``moved``, (B, width of x)."""
        return self.damped(at.states, at.image)


@dataclass(frozen=True)
class Tracking(JointSolver[TrackingMemory]):
    """Plain updates of z and mu follow the input x, which takes normalised steps.

    Every evaluation updates ``z <- f`` and ``mu <- g_z``. After ``inner`` evaluations, or sooner if z and mu lag behind
    only a little, x moves by ``v <- momentum v - (1 - momentum) r g_x / |g_x|``,

        x <- Proj(x + v),      r = step_size (1 - k / K)^decay

    where k / K is the share of evaluations already spent, among those in which x may move: x stays unchanged during the
    first ``warmup`` and the last ``settle`` evaluations.
    The step is a length in the units of x, so it needs no tuning to the scale of J.

    Args:
        step_size: length of the first step, in units of x.
        inner: largest number of evaluations between two moves of x. With 1 the step must be about four times smaller.
        lag: relative distance of z and mu from their equilibrium below which x of a sample moves sooner; 0 for never.
        decay: exponent of the decay of the step: 1 for a linear decay, 0 for none.
        momentum: share of the last move that is kept, in [0, 1).
        warmup: number of evaluations at the start in which x stays unchanged. The first multipliers belong to the start
            z0, and long steps should not be based on them.
        settle: number of evaluations at the end in which x stays unchanged.

    Example, with the problem and the start of :class:`deqopt.JointProblem`'s:
        >>> eq = Tracking(max_nfe=96, step_size=0.5).solve(problem, z0, x0)
        >>> bool((eq.x - 0.4).abs().max() < 0.1)
        True
    """

    max_nfe: int = 48
    step_size: float = 1.0
    inner: int = 2
    lag: float = 0.0
    decay: float = 1.0
    momentum: float = 0.0
    warmup: int = 0
    settle: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(step_size=self.step_size)
        at_least(1, inner=self.inner)
        not_negative(warmup=self.warmup, settle=self.settle, lag=self.lag, decay=self.decay)
        share_below_one(momentum=self.momentum)
        first = max(self.inner, self.warmup + 1)
        if self.max_nfe <= first + self.settle:
            raise ProblemError(
                f"{type(self).__name__} would never move x: max_nfe must be larger than inner + settle, and than "
                f"warmup + 1 + settle, here {first + self.settle}; got {self.max_nfe}"
            )

    def begin(self, system: JointSystem, states: Tensor, x: Tensor) -> TrackingMemory:
        return TrackingMemory(x)

    def step(self, system: JointSystem, at: JointEvaluation, memory: TrackingMemory) -> tuple[Tensor, Tensor]:
        moved = self._moved(system, at, memory)
        return memory.follow(at, moved), moved

    def _moved(self, system: JointSystem, at: JointEvaluation, memory: TrackingMemory) -> Tensor:
        memory.evaluations += 1
        memory.since_move = memory.since_move + 1
        moving = self.max_nfe - self.settle
        if not self.warmup < memory.evaluations < moving:
            return at.x
        due = (memory.since_move >= self.inner) | (at.lag < self.lag)[:, None]
        spent = (memory.evaluations - self.warmup) / (moving - self.warmup)
        length = self.step_size * (1 - spent) ** self.decay * memory.rate
        velocity = self.momentum * memory.velocity - (1 - self.momentum) * length * unit(at.g_x)
        memory.velocity = torch.where(due, velocity, memory.velocity)
        memory.since_move = torch.where(due, 0.0, memory.since_move)
        return torch.where(due, system.project(at.x + velocity), at.x)
