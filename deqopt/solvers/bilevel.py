"""Descent in x that solves z and mu again at every step: the usual method of the literature, and the baseline."""

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
    """The start of the solve, which rows have been solved since, (B, 1), and the memory of the descent."""

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
    """Descent on ``J(z(x), x)``: after every move of x, a fixed-point solver solves for z and mu.

        x  <- Proj(x - descent step along g_x)
        z  <- the solution of z = f(z, x)
        mu <- the solution of mu = d_z J + (d_z f)^T mu

    An evaluation of f alone and a vector-Jacobian product alone count as half an evaluation each. So a step, with the
    evaluation that follows it, takes at most ``inner.max_nfe + 2`` evaluations; the default budget is enough for 40
    steps. The first step solves for z and mu, and does not move x.

    Args:
        descent: method that moves x.
        inner: solver for z and for mu. Its ``tol`` must be below that of ``Bilevel``, or no sample converges.
        warm: whether both inner solves start where the last ones ended; otherwise they start where the whole solve
            began, as is usual in the literature.

    Raises:
        ProblemError: x would never move, or the adjoint differentiates through the solve (the inner solves keep no
            graph).

    Example, with the problem and the start of :class:`deqopt.JointProblem`'s:
        >>> from deqopt.solvers import PGD
        >>> solver = Bilevel(descent=PGD(lr=0.05), inner=Anderson(max_nfe=10, tol=1e-6))
        >>> solver.solve(problem, z0, x0).x[0]
        tensor([0.4000, 0.4000, 0.4000])
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
                f"{self._cost} evaluations, and the first step does not move x: max_nfe must be at least {needed}, "
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
        memory.descent.forget(memory.solved[:, 0] == 0)  # its memory of gradients at unsolved states
        memory.solved = torch.ones_like(memory.solved)

        z, mu, x = system.unpack(system.join(at.states if self.warm else memory.start, inputs))
        state = solve_state(system.problem, x, z, self.inner)
        multiplier = solve_multiplier(system.problem, state.z, x, mu, self.inner)
        memory.spent = _spent(state.nfe, multiplier.nfe)
        return system.states(state.z, multiplier.z), inputs


def _spent(states: Count, multipliers: Count) -> Count:
    """Evaluations of the two solves and of the graph of f and J between them: half of each count, rounded up."""
    return (states + multipliers + 2) // 2
