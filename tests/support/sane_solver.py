"""A sane solver, of which mutants are made."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deqopt.memory import Memory
from deqopt.solvers import JointEvaluation, JointSolver, JointSystem


@dataclass(frozen=True)
class Descent(JointSolver):
    """``z <- f``, ``mu <- g_z`` and a plain projected gradient step of x, all at once: sane."""

    max_nfe: int = 150
    step_size: float = 0.05

    def step(self, system: JointSystem, at: JointEvaluation, memory: Memory) -> tuple[Tensor, Tensor]:
        return at.image, system.project(at.x - self.step_size * memory.rate * self.direction(at, memory))

    def direction(self, at: JointEvaluation, memory: Memory) -> Tensor:
        return at.g_x
