"""What every joint solver shares: its settings, its layout of (z, mu, x), the way into the loop."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deqopt.adjoints.base import Adjoint
from deqopt.equilibrium import Equilibrium
from deqopt.errors import ProblemError
from deqopt.feasible import FeasibleSet
from deqopt.iteration import check_budget, iterate, relative_residual
from deqopt.problem import Evaluation, JointProblem
from deqopt.state import Layout, State, check_same_layout, detach, work_dtype


@dataclass(frozen=True)
class JointLayout:
    """Rows ``w = [z | mu | x]``, one a sample."""

    z: Layout
    x: Layout
    dtype: torch.dtype
    feasible: FeasibleSet

    @classmethod
    def of(cls, z: State, x: Tensor, feasible: FeasibleSet) -> JointLayout:
        dtype = torch.promote_types(work_dtype(z), work_dtype(x))
        return cls(Layout.of(z), Layout.of(x), dtype, feasible)

    @property
    def widths(self) -> list[int]:
        """Widths of the blocks z, mu and x."""
        return [self.z.width, self.z.width, self.x.width]

    def pack(self, z: State, mu: State, x: Tensor) -> Tensor:
        return torch.cat([self.z.pack(z, self.dtype), self.z.pack(mu, self.dtype), self.x.pack(x, self.dtype)], dim=1)

    def unpack(self, w: Tensor) -> tuple[State, State, Tensor]:
        z, mu, x = w.split(self.widths, dim=1)
        return self.z.unpack(z), self.z.unpack(mu), self._input(x)

    def project(self, x: Tensor) -> Tensor:
        """Rows of inputs onto the feasible set."""
        return self.x.pack(self.feasible.project(self._input(x)), self.dtype)

    def _input(self, rows: Tensor) -> Tensor:
        return rows.reshape(rows.shape[0], *self.x.shapes[0])


@dataclass(frozen=True)
class JointEvaluation:
    """An evaluation in rows: ``image = [f | g_z]``, ``g_x``, and the measures that the loop asks for."""

    image: Tensor
    g_x: Tensor
    residual: Tensor
    merit: Tensor
    objective: Tensor


# The least length, in units of x, of the step by which the residual of x is measured.
MIN_PROBE = 1e-3

Step = Callable[[Tensor, JointEvaluation], Tensor]


@dataclass(frozen=True)
class JointSolver(ABC):
    """Settings that all joint solvers have.

    Args:
        max_nfe: budget in evaluations, one forward of f and J and one vector-Jacobian product each.
        tol: a sample has converged once its relative residual is at most this.
    """

    max_nfe: int = 100
    tol: float = 1e-4

    def __post_init__(self) -> None:
        check_budget(self.max_nfe, self.tol)

    @abstractmethod
    def stepper(self, layout: JointLayout, w: Tensor) -> Step:
        """The step ``(w, evaluation) -> next w`` for rows like ``w``, with the memory that it needs.

        The input of the point that it returns must be feasible (``layout.project``); rows must not be coupled.
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
            z0: (B, *state) or a tuple of such.
            x0: (B, *input); projected, with a warning, where it is not feasible.
            mu0: start of the multiplier, shaped like z0; zero if None.
            adjoint: how gradients reach theta; with None, and under ``no_grad``, the result carries none.
            record: keep the trace of objective and residual.
            visits: keep that many iterates of the trajectory, drawn at random.

        Raises:
            ProblemError: the problem does not keep its contract (see :meth:`JointProblem.check`).
        """
        if torch.is_inference_mode_enabled():
            raise ProblemError(
                "solve() differentiates with respect to z and x, which torch.inference_mode forbids: "
                "use torch.no_grad instead (in Lightning: Trainer(inference_mode=False))"
            )
        problem.check(z0, x0)
        z0, x0 = detach(z0), x0.detach()
        layout = JointLayout.of(z0, x0, problem.feasible)
        x_rows = _feasible_start(layout, x0)
        if mu0 is None:
            mu_rows = x_rows.new_zeros(x_rows.shape[0], layout.z.width)
        else:
            check_same_layout(mu0, z0, "mu0")
            mu_rows = layout.z.pack(detach(mu0), layout.dtype)
        w = torch.cat([layout.z.pack(z0, layout.dtype), mu_rows, x_rows], dim=1)
        scale: tuple[Tensor, Tensor] | None = None

        def evaluate(w: Tensor) -> JointEvaluation:
            nonlocal scale
            z, mu, x = layout.unpack(w)
            evaluation = problem.evaluate(z, x, mu)
            if scale is None:  # taken at f, because at a z0 of zeros x may not act yet (multiplicative injections)
                scale = problem.input_scale(evaluation.f, x)
            return measure(layout, w, evaluation, scale)

        with torch.no_grad():
            outcome = iterate(
                evaluate,
                self.stepper(layout, w),
                w,
                max_nfe=self.max_nfe,
                tol=self.tol,
                record=record,
                visits=visits,
            )
        z, mu, x = layout.unpack(outcome.w)
        visited = tuple((point[0], point[2]) for point in map(layout.unpack, outcome.visited))
        equilibrium = Equilibrium(
            z, x, mu, outcome.objective, outcome.residual, outcome.status, outcome.nfe, scale, outcome.trace, visited
        )
        if adjoint is None or not torch.is_grad_enabled():
            return equilibrium
        return adjoint.attach(problem, equilibrium)


def _feasible_start(layout: JointLayout, x0: Tensor) -> Tensor:
    given = layout.x.pack(x0, layout.dtype)
    start = layout.project(given)
    if bool(((start - given).norm(dim=1) > 1e-5 * (1 + given.norm(dim=1))).any()):
        warnings.warn("x0 is not in the feasible set: it was projected onto it", stacklevel=3)
    return start


def measure(layout: JointLayout, w: Tensor, evaluation: Evaluation, scale: tuple[Tensor, Tensor]) -> JointEvaluation:
    """An evaluation at ``w = [z | mu | x]`` in rows, with its residual, the largest of those of z, mu and x, and its
    merit, ``J + |g_z| |f - z|``: J at the equilibrium of x is ``J + <mu, f - z>`` to first order, so the merit bounds
    from above what lies behind a J that was measured off the equilibrium.

    Those of z and mu are relative to f and g_z. That of x is the projected gradient, relative to the size that g_x has
    where its two terms do not cancel, ``|d_x J| + gain |mu|`` with ``scale = (|d_x J|, gain)``: so it depends on the
    units of neither J nor x.
    """
    z, mu, x = w.split(layout.widths, dim=1)
    f = layout.z.pack(evaluation.f, layout.dtype)
    g_z = layout.z.pack(evaluation.g_z, layout.dtype)
    g_x = layout.x.pack(evaluation.g_x, layout.dtype)
    direct, gain = (part.to(layout.dtype) for part in scale)
    size = (direct + gain * mu.norm(dim=1)).clamp_min(torch.finfo(layout.dtype).tiny ** 0.5)
    length = (x.norm(dim=1) + MIN_PROBE) / size
    moved = (x - layout.project(x - length[:, None] * g_x)).norm(dim=1)
    residuals = relative_residual(f, z), relative_residual(g_z, mu), moved / (length * size)
    objective = evaluation.objective.to(layout.dtype)
    return JointEvaluation(
        image=torch.cat([f, g_z], dim=1),
        g_x=g_x,
        residual=torch.stack(residuals).amax(0),
        merit=objective + g_z.norm(dim=1) * (f - z).norm(dim=1),
        objective=objective,
    )
