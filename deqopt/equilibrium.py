"""The results of a solve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from deqopt.batch import pick
from deqopt.iteration import Status, Trace
from deqopt.scale import Scale
from deqopt.state import State, detach, state_of, tensors_of


@dataclass
class BackwardReport:
    """Report on the last backward pass through a solution; empty before the first backward pass.

    Attributes:
        residual: (B,) relative residual of the linear system that the adjoint solves for the gradient.
        status: (B,) values of :class:`deqopt.Status`.
        nfe: (B,) number of products with the transposed Jacobian of the stationary system.
        growth: (B,) for an adjoint that differentiates the evaluations: the largest length of the gradient on its way
            back through them, relative to its length at the solution; NaN where the gradient was zero.
        lost: (B,) whether the sample gave no gradient: its solve or its backward solve diverged, or its start, its
            loss or the gradient of its loss is NaN or infinite. Failures of the solve are known before the backward
            pass.
    """

    residual: Tensor | None = None
    status: Tensor | None = None
    nfe: Tensor | None = None
    growth: Tensor | None = None
    lost: Tensor | None = None

    def figures(self) -> dict[str, Tensor]:
        """Summary of the last pass: the largest ``growth`` of all samples, and the means of ``residual``, ``nfe`` and
        ``converged`` over the samples that are not NaN or infinite."""
        found = {}
        if self.growth is not None:
            found["growth"] = self.growth.nan_to_num(nan=0.0).max().float()
        if self.residual is None or self.nfe is None or self.status is None:
            return found
        usable = self.status != Status.NON_FINITE
        if bool(usable.any()):
            values = {"residual": self.residual, "nfe": self.nfe, "converged": self.status == Status.CONVERGED}
            found |= {name: value[usable].float().mean() for name, value in values.items()}
        return found


@dataclass(frozen=True)
class FixedPoint:
    """A point with ``z = f(z)`` up to ``residual``.

    Attributes:
        z: shaped like the start.
        residual: (B,) ``|f(z) - z| / |f(z)|``.
        status: (B,) values of :class:`deqopt.Status`.
        nfe: (B,) evaluations of f.
        backward: with an adjoint, the report on the backward pass.

    Example:
        >>> import torch
        >>> from deqopt.fixed_point import Damped
        >>> found = Damped(tol=1e-4).solve(lambda z: 0.5 * z + 1, torch.zeros(3, 2))
        >>> int(found.nfe[0]) < 20, bool((found.z - 2).abs().max() < 1e-3)
        (True, True)
    """

    z: State
    residual: Tensor
    status: Tensor
    nfe: Tensor
    backward: BackwardReport | None = None

    @property
    def differentiable(self) -> Tensor:
        """(B,) whether a sample gives a gradient: false where its start was NaN or infinite, or its solve diverged."""
        return (self.status != Status.NON_FINITE) & (self.status != Status.DIVERGED)


@dataclass(frozen=True, repr=False)
class Equilibrium:
    """A stationary point of the joint problem, up to ``residual``, for every sample of a batch.

    Attributes:
        z: the hidden state, shaped like z0.
        x: the optimised input, shaped like x0; always feasible.
        mu: the multiplier, shaped like z0.
        objective: (B,) J at the returned point. With an adjoint it carries the gradient to theta.
        residual: (B,) relative residual of the stationary system: the largest of those of z, mu and x.
        status: (B,) values of :class:`deqopt.Status`.
        nfe: (B,) evaluations spent on that sample, without those that measure ``scale``: one forward and two
            vector-Jacobian products at the start, and again where convergence seems to be reached.
        lag: (B,) relative distance of z and mu from their equilibrium at x: the part of ``residual`` due to z and mu.
        state_lag: (B,) relative distance of z alone: ``|f - z| / |f|``.
        error: (B,) estimate of how far J at the exact equilibrium of x may lie above ``objective``: ``|mu| |f - z|``.
        size: (B,) the length that the gradient in x would have if its terms did not cancel.
        curvature: (B,) curvature of the Lagrangian along the last move of x, estimated by a secant; negative near a
            saddle or a maximum, NaN where no move was clear enough for an estimate.
        scale: the lengths by which the residual was measured.
        trace: with ``record=True``, objective and residual after every evaluation.
        visited: with ``visits``, iterates (z, x) of the trajectory, drawn at random.
        backward: with an adjoint, the report on the backward pass.
        held: names of those of z, x and mu that the adjoint holds fixed; the backward pass of a loss that depends on
            them warns.

    Example, with the problem and the start of :class:`deqopt.JointProblem`'s:
        >>> from deqopt.solvers import JointAnderson
        >>> eq = JointAnderson().solve(problem, z0, x0)
        >>> eq.z.shape, eq.converged.tolist()
        (torch.Size([2, 3]), [True, True])
    """

    z: State
    x: Tensor
    mu: State
    objective: Tensor
    residual: Tensor
    status: Tensor
    nfe: Tensor
    lag: Tensor | None = None
    state_lag: Tensor | None = None
    error: Tensor | None = None
    size: Tensor | None = None
    curvature: Tensor | None = None
    scale: Scale | None = None
    trace: Trace | None = None
    visited: tuple[tuple[State, Tensor], ...] = ()
    backward: BackwardReport | None = None
    held: frozenset[str] = frozenset()

    @property
    def converged(self) -> Tensor:
        """(B,) whether the residual of a sample is below the tolerance."""
        return self.status == Status.CONVERGED

    @property
    def usable(self) -> Tensor:
        """(B,) whether a sample has finite values: false if its start was already NaN or infinite."""
        return self.status != Status.NON_FINITE

    @property
    def differentiable(self) -> Tensor:
        """(B,) whether a sample gives a gradient to theta: false if it is not usable, or if its solve diverged, because
        the returned point then says nothing about the solution."""
        return self.usable & (self.status != Status.DIVERGED)

    @property
    def values(self) -> tuple[Tensor, ...]:
        """The tensors of z and of mu, and x."""
        return (*tensors_of(self.z), *tensors_of(self.mu), self.x)

    def with_values(self, values: Sequence[Tensor], objective: Tensor, backward: BackwardReport) -> Equilibrium:
        """A copy with other :attr:`values`, another objective and another report."""
        count = len(tensors_of(self.z))
        z, mu = state_of(values[:count], self.z), state_of(values[count:-1], self.mu)
        return replace(self, z=z, mu=mu, x=values[-1], objective=objective, backward=backward)

    def pick(self, keep: Tensor) -> Equilibrium:
        """The samples where ``keep``, (B,), is true. ``backward`` stays shared and still describes all samples."""
        picked = pick(replace(self, trace=None, backward=None), keep)
        trace = None if self.trace is None else Trace(self.trace.objective[:, keep], self.trace.residual[:, keep])
        return replace(picked, trace=trace, backward=self.backward)

    def detach_held(self) -> Equilibrium:
        """A copy with the ``held`` values detached, for a loss that depends on them on purpose."""
        free: dict[str, Any] = {name: detach(getattr(self, name)) for name in self.held}
        return replace(self, **free, held=frozenset())

    def to(self, device: torch.device | str) -> Equilibrium:
        """A copy on another device. ``backward`` stays shared, so that a later backward pass can fill it."""

        def moved(part: Any) -> Any:
            if isinstance(part, Tensor):
                return part.to(device)
            if isinstance(part, Trace):
                return Trace(part.objective.to(device), part.residual.to(device))
            if isinstance(part, Scale):
                return Scale(part.rows.to(device))
            return tuple(map(moved, part)) if isinstance(part, tuple) else part

        return Equilibrium(**{field.name: moved(getattr(self, field.name)) for field in fields(self)})

    def report(self) -> str:
        """Counts of how the samples ended, with advice: one line for each status that occurs and for each warning."""
        statuses = [Status.of(value) for value in self.status]
        ended = [
            f"{statuses.count(status)} of {len(statuses)} {status.name.lower()}: {status.message}"
            for status in sorted(set(statuses))
        ]
        return "\n".join([*ended, *self._notes()])

    def __repr__(self) -> str:
        """The report."""
        return f"Equilibrium of {len(self.status)} samples\n{self.report()}"

    def _notes(self) -> Iterator[str]:
        known = (self.lag, self.state_lag, self.error, self.size, self.curvature)
        if any(one is None for one in known):
            return
        lag, state_lag, error, size, curvature = (one.detach() for one in known if one is not None)
        count, usable = len(self.status), self.usable
        objective = self.objective.detach()
        off = usable & ~self.converged & ((state_lag > LAGS) | (error > LAGS * objective.abs()))
        if off.any():
            yield (
                f"{int(off.sum())} of {count} objectives were measured off the equilibrium: at the exact one J may be "
                f"higher by {_median(error[off])} or more; check with solve_exactly(problem, eq)"
            )
        bent = self.converged & (curvature < 0)
        if bent.any():
            yield (
                f"{int(bent.sum())} of {count} converged where the objective curves downwards along the last move of "
                "x: a saddle or a maximum, not a minimum"
            )
        open_ = usable & ~self.converged
        moving = open_ & (self.residual > lag)
        if moving.any():
            away = (self.residual * size / curvature)[moving & (curvature > 0)]
            far = (
                f", by its last secant about {_median(away)} away: try a step size of that length" if len(away) else ""
            )
            yield f"in {int(moving.sum())} of {count} x is not yet stationary{far}"
        lagging = open_ & ~moving
        if lagging.any():
            yield (
                f"in {int(lagging.sum())} of {count} z and mu lag behind x: try a smaller step size, more evaluations, "
                "or a cell that contracts more"
            )


# The report mentions the lag, or the relative error of the objective that it may hide, from this value on.
LAGS = 0.1


def _median(values: Tensor) -> str:
    return f"{float(values.median()):.2g}"
