"""The stationary system of a joint problem in rows ``w = [z | mu | x]``, one a sample: what the loop evaluates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deqopt.iteration import LoopSettings
from deqopt.problem import Evaluation, JointProblem
from deqopt.state import Layout, State, state_of, tensors_of, work_dtype

Evaluate = Callable[[JointProblem, State, Tensor, State], Evaluation]

# The least length, in units of x, of the step by which the residual of x is measured.
MIN_PROBE = 1e-3


@dataclass(frozen=True)
class JointEvaluation:
    """An evaluation in rows, and its measures, (B,) each.

    Attributes:
        image: ``[f | g_z]``.
        g_x: the gradient of the Lagrangian in x.
        lag: how far z and mu are from their equilibrium: the larger of ``|f - z| / |f|`` and ``|g_z - mu| / |g_z|``.
        size: the length that g_x has where its two terms do not cancel, ``|d_x J| + gain |mu|``.
        residual: the larger of ``lag`` and the projected gradient of x relative to ``size``.
        merit: ``J + |g_z| |f - z|``. J at the equilibrium of x is ``J + <mu, f - z>`` to first order, so this bounds
            from above what lies behind a J that was measured off the equilibrium.
        objective: J.
    """

    image: Tensor
    g_x: Tensor
    lag: Tensor
    size: Tensor
    residual: Tensor
    merit: Tensor
    objective: Tensor


@dataclass
class JointSystem:
    """The equations ``z = f``, ``mu = g_z``, ``x = Proj(x - a g_x)`` of some samples of a problem.

    Attributes:
        problem: of these samples.
        z, x: how states and inputs lie in the rows.
        dtype: of the rows, at least float32.
        settings: norm and tolerances by which residuals are measured.
        evaluation: how the problem is evaluated.
        scale: (B,) each, ``|d_x J|`` and the gain of x (:meth:`JointProblem.input_scale`), from the first evaluation.
    """

    problem: JointProblem
    z: Layout
    x: Layout
    dtype: torch.dtype
    settings: LoopSettings
    evaluation: Evaluate = JointProblem.evaluate
    scale: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(
        cls,
        problem: JointProblem,
        z: State,
        x: Tensor,
        settings: LoopSettings,
        evaluation: Evaluate = JointProblem.evaluate,
        scale: tuple[Tensor, Tensor] | None = None,
    ) -> JointSystem:
        dtype = torch.promote_types(work_dtype(z), work_dtype(x))
        return cls(problem, Layout.of(z), Layout.of(x), dtype, settings, evaluation, scale)

    @property
    def widths(self) -> list[int]:
        """Widths of the blocks z, mu and x."""
        return [self.z.width, self.z.width, self.x.width]

    def pack(self, z: State, mu: State, x: Tensor) -> Tensor:
        return torch.cat(
            [*self.z.rows(z, self.dtype), *self.z.rows(mu, self.dtype), *self.x.rows(x, self.dtype)], dim=1
        )

    def unpack(self, w: Tensor) -> tuple[State, State, Tensor]:
        z, mu, x = w.split(self.widths, dim=1)
        return self.z.unpack(z), self.z.unpack(mu), self._input(x)

    def inputs(self, w: Tensor) -> Tensor:
        """The block of x in rows."""
        return w[:, 2 * self.z.width :]

    def project(self, x: Tensor) -> Tensor:
        """Rows of inputs onto the feasible set."""
        return self.x.pack(self.problem.feasible.project(self._input(x)), self.dtype)

    def evaluate(self, w: Tensor) -> JointEvaluation:
        z, mu, x = self.unpack(w)
        evaluation = self.evaluation(self.problem, _contiguous(z), x.contiguous(), _contiguous(mu))
        if self.scale is None:  # taken at f, because at a z0 of zeros x may not act yet (multiplicative injections)
            self.scale = self.problem.input_scale(evaluation.f, x)
        return self.measure(w, evaluation)

    def measure(self, w: Tensor, evaluation: Evaluation) -> JointEvaluation:
        """An evaluation at ``w`` in rows, with its measures: see :class:`JointEvaluation`.

        The projected gradient is ``|x - Proj(x - a g_x)| / a`` with a so that a gradient as long as ``size`` moves x by
        its own length. So the residual depends on the units of neither J nor x.
        """
        assert self.scale is not None
        width, norm = self.z.width, self.settings.norm
        image = torch.cat([*self.z.rows(evaluation.f, self.dtype), *self.z.rows(evaluation.g_z, self.dtype)], dim=1)
        g_x = self.x.pack(evaluation.g_x, self.dtype)
        x, off = self.inputs(w), image - w[:, : 2 * width]
        floor = torch.finfo(self.dtype).eps * width**0.5
        lags = [
            self.settings.relative(norm.of(distance), norm.of(target).clamp_min(floor))
            for distance, target in zip(off.split(width, dim=1), image.split(width, dim=1), strict=True)
        ]
        lag = torch.maximum(*lags)
        direct, gain = (part.to(self.dtype) for part in self.scale)
        tiny = torch.finfo(self.dtype).tiny ** 0.5
        size = (direct + gain * w[:, width : 2 * width].norm(dim=1)).clamp_min(tiny)
        length = (x.norm(dim=1) + MIN_PROBE) / size
        moved = norm.of(x - self.project(x - length[:, None] * g_x)) / length
        objective = evaluation.objective.to(self.dtype)
        return JointEvaluation(
            image=image,
            g_x=g_x,
            lag=lag,
            size=size,
            residual=torch.maximum(lag, self.settings.relative(moved, size)),
            merit=objective + image[:, width:].norm(dim=1) * off[:, :width].norm(dim=1),
            objective=objective,
        )

    def pick(self, keep: Tensor) -> JointSystem | None:
        problem = self.problem.pick(keep, 1 + len(self.x.shapes[0]))
        if problem is None:
            return None
        scale = None if self.scale is None else (self.scale[0][keep], self.scale[1][keep])
        return replace(self, problem=problem, scale=scale)

    def _input(self, rows: Tensor) -> Tensor:
        return rows.reshape(rows.shape[0], *self.x.shapes[0])


def _contiguous(state: State) -> State:
    """Parts of rows as tensors of their own: convolutions and their gradients take longer with gaps between samples."""
    return state_of((part.contiguous() for part in tensors_of(state)), state)
