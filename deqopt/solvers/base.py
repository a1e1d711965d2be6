"""The base class of all joint solvers: settings, start of a solve, and the call of the loop."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from deqopt.adjoint import Adjoint
from deqopt.equilibrium import Equilibrium
from deqopt.errors import ProblemError, require
from deqopt.iteration import Outcome, iterate
from deqopt.loop_settings import LoopSettings
from deqopt.memory import Memory, MemoryT
from deqopt.problem import JointProblem
from deqopt.scale import Scale
from deqopt.solvers.system import JointEvaluation, JointSystem
from deqopt.state import State, check_same_layout, state_of, tensors_of


@dataclass(frozen=True)
class JointSolver(LoopSettings, ABC, Generic[MemoryT]):
    """Base class of joint solvers, with the settings of :class:`deqopt.loop_settings.LoopSettings`.

    One evaluation is one forward pass of f and J and one vector-Jacobian product. A new solver is a subclass of
    ``JointSolver[MyMemory]``, or of ``JointSolver`` if its step needs no memory.

    Example, with the problem and the start of :class:`deqopt.JointProblem`'s:
        >>> from deqopt.solvers import JointAnderson
        >>> eq = JointAnderson().solve(problem, z0, x0)
        >>> bool((eq.x - 0.4).abs().max() < 0.01)
        True
    """

    def begin(self, system: JointSystem, states: Tensor, x: Tensor) -> MemoryT:
        """The empty memory of a solve that starts at the rows ``states = [z | mu]`` and ``x``, (B, width) each."""
        return Memory(x)  # type: ignore[return-value]

    @abstractmethod
    def step(self, system: JointSystem, at: JointEvaluation, memory: MemoryT) -> tuple[Tensor, Tensor]:
        """Compute the next rows of states ``[z | mu]`` and of inputs from an evaluation.

        The inputs must be feasible (``system.project``), the step must not couple rows, and it must not change any of
        the given tensors in place.
        """

    def solve(
        self,
        problem: JointProblem,
        z0: State,
        x0: Tensor,
        *,
        mu0: State | None = None,
        adjoint: Adjoint | None = None,
        record: bool = False,
        visits: int = 0,
    ) -> Equilibrium:
        """Find the stationary point of every sample from ``(z0, x0)``.

        Args:
            z0: (B, *state), or a tuple of such tensors.
            x0: (B, *input); projected, with a warning, where it is not feasible.
            mu0: start of the multiplier, shaped like z0; zero if None. Only the adjoint Unrolled, which differentiates
                the solve, gives a gradient to a learned start; all other adjoints give none, because the optimum does
                not depend on the start.
            adjoint: method by which gradients reach theta; with None, or under ``no_grad``, the result carries no
                gradient.
            record: whether to keep the trace of objective and residual.
            visits: number of iterates of the trajectory to keep, drawn at random.

        Raises:
            ProblemError: the problem or its start is invalid (see :meth:`JointProblem.check`).
        """
        if torch.is_inference_mode_enabled():
            raise ProblemError(
                "solve() differentiates with respect to z and x, which torch.inference_mode forbids: "
                "use torch.no_grad instead (in Lightning: Trainer(inference_mode=False))"
            )
        require(problem, JointProblem, "problem")
        problem.check(z0, x0)
        if mu0 is None:
            mu0 = state_of((torch.zeros_like(part) for part in tensors_of(z0)), z0)
        check_same_layout(mu0, z0, "mu0")
        if adjoint is not None:
            require(adjoint, Adjoint, "adjoint")

        def run(problem: JointProblem) -> Equilibrium:
            return self._run(problem, z0, x0, mu0, record, visits)

        return run(problem) if adjoint is None or not torch.is_grad_enabled() else adjoint.solve(run, problem)

    def _run(self, problem: JointProblem, z0: State, x0: Tensor, mu0: State, record: bool, visits: int) -> Equilibrium:
        system = JointSystem.of(problem, z0, x0, self)
        with torch.set_grad_enabled(problem.recorded):
            states, x = system.states(z0, mu0), _feasible_start(system, x0)
            memory, start = self.begin(system, states, x), system.join(states, x)
            outcome = iterate(system, self._next, memory, start, self, record=record, visits=visits)
            return _equilibrium(system, outcome)

    def _next(self, system: JointSystem, at: JointEvaluation, memory: MemoryT) -> Tensor:
        return system.join(*self.step(system, at, memory))


def _equilibrium(system: JointSystem, outcome: Outcome) -> Equilibrium:
    z, mu, x = (_own(part) for part in system.unpack(outcome.w))
    visited = tuple((point[0], point[2]) for point in map(system.unpack, outcome.visited))
    lag, state_lag, size, curvature = outcome.figures[:, :4].unbind(1)
    assert isinstance(x, Tensor)
    return Equilibrium(
        z,
        x,
        mu,
        outcome.objective,
        outcome.residual,
        outcome.status,
        outcome.nfe,
        lag=lag,
        state_lag=state_lag,
        error=outcome.slope * outcome.distance,
        size=size,
        curvature=curvature,
        scale=Scale(outcome.figures[:, 4:]),
        trace=outcome.trace,
        visited=visited,
    )


def _own(state: State) -> State:
    """The same values in separate memory, instead of views of the memory of all rows."""
    return state_of((part.clone(memory_format=torch.contiguous_format) for part in tensors_of(state)), state)


def _feasible_start(system: JointSystem, x0: Tensor) -> Tensor:
    given = system.x.pack(x0, system.dtype)
    start = system.project(given)
    if bool(((start - given).norm(dim=1) > 1e-5 * (1 + given.norm(dim=1))).any()):
        warnings.warn("x0 is not in the feasible set: it was projected onto it", stacklevel=5)
    return start
