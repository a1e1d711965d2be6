"""Tracking: plain updates follow the equilibrium while the input takes normalised steps that shrink to zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.memory import Memory
from deqopt.solvers.base import JointSolver
from deqopt.solvers.system import JointEvaluation, JointSystem


@dataclass(frozen=True)
class Tracking(JointSolver):
    """Plain updates of z and mu that follow x, which takes normalised steps.

    Every evaluation updates ``z <- f`` and ``mu <- g_z``. After ``inner`` of them x moves by

        x <- Proj(x - step_size (1 - k / K) g_x / |g_x|)

    where k / K is the spent share of the budget; the last ``settle`` evaluations leave x where it is.
    The step is a length in the units of x, so that it needs no tuning to the scale of J.

    Args:
        step_size: length of the first step, in units of x.
        inner: evaluations between two moves of x. With 1 the step must be about four times smaller.
        settle: evaluations at the end in which x rests.
    """

    max_nfe: int = 48
    step_size: float = 1.0
    inner: int = 2
    settle: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.step_size > 0:
            raise ProblemError(f"step_size must be larger than 0, got {self.step_size}")
        if self.inner < 1 or self.settle < 0:
            raise ProblemError(f"inner must be at least 1 and settle at least 0, got {self.inner} and {self.settle}")
        if self.max_nfe <= self.inner + self.settle:
            raise ProblemError(
                "Tracking would never move x: max_nfe must be larger than "
                f"inner + settle = {self.inner + self.settle}, got {self.max_nfe}"
            )

    def begin(self, system: JointSystem, w: Tensor) -> _Progress:
        return _Progress(w)

    def step(self, system: JointSystem, w: Tensor, evaluation: JointEvaluation, memory: Memory) -> Tensor:
        assert isinstance(memory, _Progress)
        memory.evaluations += 1
        moving = self.max_nfe - self.settle
        x = system.inputs(w)
        if memory.evaluations % self.inner == 0 and memory.evaluations < moving:
            length = self.step_size * (1 - memory.evaluations / moving) * memory.rate
            norm = evaluation.g_x.norm(dim=1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
            x = system.project(x - length * evaluation.g_x / norm)
        return torch.cat([memory.damped(w[:, : -x.shape[1]], evaluation.image), x], dim=1)


class _Progress(Memory):
    def __init__(self, w: Tensor) -> None:
        super().__init__(w)
        self.evaluations = 0
