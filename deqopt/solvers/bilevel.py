"""Descent in x with z and mu solved anew at every step: what the literature does, and the baseline to beat."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from deqopt.errors import ProblemError, require
from deqopt.fixed_point import Anderson, FixedPointSolver
from deqopt.memory import Memory
from deqopt.solvers.base import JointSolver
from deqopt.solvers.descent import LBFGS, Descent
from deqopt.solvers.exact import solve_multiplier, solve_state
from deqopt.solvers.system import JointEvaluation, JointSystem

Count = TypeVar("Count", int, Tensor)


class Solves(Memory):
    """Where the solve began, which rows have been solved since, (B, 1), and what the descent remembers."""

    def __init__(self, states: Tensor, descent: Memory, cost: int) -> None:
        super().__init__(states)
        self.start, self.descent, self.cost = states, descent, cost
        self.solved = torch.zeros_like(self.rate)

    def forget(self, lost: Tensor) -> None:
        start = self.start
        super().forget(lost)
        self.start = start


@dataclass(frozen=True)
class Bilevel(JointSolver[Solves]):
    """Descent on ``J(z(x), x)``: after every move of x, z and mu are solved by a fixed-point solver.

        x  <- Proj(x - descent step along g_x)
        z  <- the solution of z = f(z, x)
        mu <- the solution of mu = d_z J + (d_z f)^T mu

    An evaluation of f alone and a vector-Jacobian product alone count one half each. So a step, with the evaluation
    that follows it, takes at most ``inner.max_nfe + 2``; the default budget is for 40 of them. The first only solves.

    Args:
        descent: how x moves.
        inner: solves for z, and for mu. Where its ``tol`` is not below that of the whole, no sample converges.
        warm: both solves start where the last ones ended; else where this solve began, as the literature does.

    Raises:
        ProblemError: x would never move; an adjoint that differentiates through the solve (its inner ones keep no
            graph).
    """

    max_nfe: int = 575
    descent: Descent = field(default_factory=LBFGS)
    inner: FixedPointSolver = field(default_factory=lambda: Anderson(max_nfe=12))
    warm: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.descent, Descent, "descent")
        require(self.inner, FixedPointSolver, "inner")
        needed = 1 + 2 * self._cost
        if self.max_nfe < needed:
            raise ProblemError(
                f"Bilevel would never move x: with inner.max_nfe = {self.inner.max_nfe} a step takes up to "
                f"{self._cost} evaluations, and the first only solves: max_nfe must be at least {needed}, "
                f"got {self.max_nfe}"
            )

    @property
    def _cost(self) -> int:
        return _spent(self.inner.max_nfe, self.inner.max_nfe) + 1

    def begin(self, system: JointSystem, states: Tensor, x: Tensor) -> Solves:
        return Solves(states, self.descent.begin(x), self._cost)

    def step(self, system: JointSystem, at: JointEvaluation, memory: Solves) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            raise ProblemError(
                "Bilevel cannot be differentiated through: its inner solves keep no graph; "
                "use the adjoint Implicit or Envelope"
            )
        moved = self.descent.step(system, at, memory.descent)
        inputs = torch.where(memory.solved > 0, moved, at.x)
        memory.descent.forget(memory.solved[:, 0] == 0)  # of what it saw of a gradient that was not solved for
        memory.solved = torch.ones_like(memory.solved)

        z, mu, x = system.unpack(system.join(at.states if self.warm else memory.start, inputs))
        state = solve_state(system.problem, x, z, self.inner)
        multiplier = solve_multiplier(system.problem, state.z, x, mu, self.inner)
        memory.spent = _spent(state.nfe, multiplier.nfe)
        return system.states(state.z, multiplier.z), inputs


def _spent(states: Count, multipliers: Count) -> Count:
    """Halves of the two solves and of the graph of f and J between them, rounded up."""
    return (states + multipliers + 2) // 2
