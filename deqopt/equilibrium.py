"""What a joint solve returns."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from deqopt.iteration import Status, Trace
from deqopt.state import State


@dataclass
class BackwardReport:
    """How the last backward pass through a solution went: empty until there was one.

    Attributes:
        residual: (B,) relative residual of the linear system behind the gradient; see the adjoint.
        status: (B,) values of :class:`deqopt.Status`.
        nfe: (B,) products with the transposed Jacobian of the stationary system that it took.
    """

    residual: Tensor | None = None
    status: Tensor | None = None
    nfe: Tensor | None = None


@dataclass(frozen=True)
class Equilibrium:
    """A stationary point of the joint problem, up to ``residual``, for every sample of a batch.

    Attributes:
        z: the hidden state, shaped like z0.
        x: the optimised input, shaped like x0; always feasible.
        mu: the multiplier, shaped like z0.
        objective: (B,) J at the returned point. With an adjoint it carries the gradient to theta.
        residual: (B,) relative residual of the stationary system: the largest of those of z, mu and x.
        status: (B,) values of :class:`deqopt.Status`.
        nfe: (B,) evaluations spent on that sample, without the one forward and two vector-Jacobian products a solve
            that measure ``scale``.
        scale: (B,) each, ``|d_x J|`` and the gain of x at the start (:meth:`JointProblem.input_scale`), by which the
            residual of x was measured.
        trace: objective and residual after every evaluation, where asked for with ``record=True``.
        visited: iterates (z, x) of the trajectory drawn at random, where asked for with ``visits``.
        backward: how the backward pass went, where the adjoint solves a linear system in it.
    """

    z: State
    x: Tensor
    mu: State
    objective: Tensor
    residual: Tensor
    status: Tensor
    nfe: Tensor
    scale: tuple[Tensor, Tensor] | None = None
    trace: Trace | None = None
    visited: tuple[tuple[State, Tensor], ...] = ()
    backward: BackwardReport | None = None

    @property
    def converged(self) -> Tensor:
        """(B,) whether the residual of a sample is below the tolerance."""
        return self.status == Status.CONVERGED

    @property
    def usable(self) -> Tensor:
        """(B,) whether a sample has finite values: false where its start already was NaN or infinite."""
        return self.status != Status.NON_FINITE

    def to(self, device: torch.device | str) -> Equilibrium:
        """The same on another device. ``backward`` stays shared, to be filled by a backward pass to come."""

        def moved(part: Any) -> Any:
            if isinstance(part, Tensor):
                return part.to(device)
            if isinstance(part, Trace):
                return Trace(part.objective.to(device), part.residual.to(device))
            return tuple(map(moved, part)) if isinstance(part, tuple) else part

        return Equilibrium(**{field.name: moved(getattr(self, field.name)) for field in fields(self)})

    def report(self) -> str:
        """How many samples ended how, with advice: one line for each status that occurs."""
        statuses = [Status.of(value) for value in self.status]
        return "\n".join(
            f"{statuses.count(status)} of {len(statuses)} {status.name.lower()}: {status.message}"
            for status in sorted(set(statuses))
        )
