"""Tracking: plain updates follow the equilibrium while the input takes normalised steps that shrink to zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.memory import Memory
from deqopt.solvers.base import JointSolver
from deqopt.solvers.system import JointEvaluation, JointSystem
from deqopt.state import unit


@dataclass(frozen=True)
class Tracking(JointSolver):
    """Plain updates of z and mu that follow x, which takes normalised steps.

    Every evaluation updates ``z <- f`` and ``mu <- g_z``. After ``inner`` of them, or sooner where z and mu lag little
    behind, x moves by ``v <- momentum v - (1 - momentum) r g_x / |g_x|``,

        x <- Proj(x + v),      r = step_size (1 - k / K)^decay

    where k / K is the spent share of the evaluations in which x may move: the first ``warmup`` and the last ``settle``
    leave it where it is.
    The step is a length in the units of x, so that it needs no tuning to the scale of J.

    Args:
        step_size: length of the first step, in units of x.
        inner: the most evaluations between two moves of x. With 1 the step must be about four times smaller.
        lag: a sample's x moves sooner once its z and mu are this close to their equilibrium, relative; 0 for never.
        decay: how the step falls: 1 linearly, 0 not at all.
        momentum: in [0, 1): the share of the last move that is kept.
        warmup: evaluations at the start in which x rests, because the first multipliers are those of the start, z0: a
            few long steps should not be spent on them.
        settle: evaluations at the end in which x rests.
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
        if not self.step_size > 0:
            raise ProblemError(f"step_size must be larger than 0, got {self.step_size}")
        if self.inner < 1 or self.warmup < 0 or self.settle < 0:
            raise ProblemError(
                "inner must be at least 1, warmup and settle at least 0, "
                f"got {self.inner}, {self.warmup} and {self.settle}"
            )
        if not self.lag >= 0 or not self.decay >= 0:
            raise ProblemError(f"lag and decay must be 0 or larger, got {self.lag} and {self.decay}")
        if not 0 <= self.momentum < 1:
            raise ProblemError(f"momentum must be in [0, 1), got {self.momentum}")
        first = max(self.inner, self.warmup + 1)
        if self.max_nfe <= first + self.settle:
            raise ProblemError(
                f"{type(self).__name__} would never move x: max_nfe must be larger than inner + settle, and than "
                f"warmup + 1 + settle, here {first + self.settle}; got {self.max_nfe}"
            )

    def begin(self, system: JointSystem, w: Tensor) -> TrackingMemory:
        return TrackingMemory(w, system.x.width)

    def step(self, system: JointSystem, w: Tensor, evaluation: JointEvaluation, memory: Memory) -> Tensor:
        assert isinstance(memory, TrackingMemory)
        moved = self._moved(system, system.inputs(w), evaluation, memory)
        return torch.cat([self.follow(w, evaluation, moved, memory), moved], dim=1)

    def follow(self, w: Tensor, evaluation: JointEvaluation, moved: Tensor, memory: TrackingMemory) -> Tensor:
        """The next ``[z | mu]``, where x goes from where it is in ``w`` to ``moved``, (B, width of x)."""
        return memory.damped(w[:, : evaluation.image.shape[1]], evaluation.image)

    def _moved(self, system: JointSystem, x: Tensor, evaluation: JointEvaluation, memory: TrackingMemory) -> Tensor:
        memory.evaluations += 1
        memory.since_move = memory.since_move + 1
        moving = self.max_nfe - self.settle
        if not self.warmup < memory.evaluations < moving:
            return x
        due = (memory.since_move >= self.inner) | (evaluation.lag < self.lag)[:, None]
        spent = (memory.evaluations - self.warmup) / (moving - self.warmup)
        length = self.step_size * (1 - spent) ** self.decay * memory.rate
        downhill = -unit(evaluation.g_x)
        velocity = self.momentum * memory.velocity + (1 - self.momentum) * length * downhill
        memory.velocity = torch.where(due, velocity, memory.velocity)
        memory.since_move = torch.where(due, 0.0, memory.since_move)
        return torch.where(due, system.project(x + velocity), x)


class TrackingMemory(Memory):
    """How far a solve is: evaluations in all, (B, 1) those since x moved, (B, width of x) its last move."""

    def __init__(self, w: Tensor, width: int) -> None:
        super().__init__(w)
        self.evaluations = 0
        self.since_move = torch.zeros_like(w[:, :1])
        self.velocity = torch.zeros_like(w[:, :width])
