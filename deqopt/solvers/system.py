"""The stationary system of a joint problem in rows ``w = [z | mu | x]``, one a sample: what the loop evaluates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deqopt.feasible import Everywhere
from deqopt.iteration import LoopSettings, Norm
from deqopt.problem import Evaluation, JointProblem
from deqopt.scale import Scale
from deqopt.solvers.last_move import LastMove
from deqopt.state import Layout, State, state_of, tensors_of, work_dtype

Evaluate = Callable[[JointProblem, State, Tensor, State], Evaluation]

# A state or multiplier counts as zero at this share of its length at the start: relative to zero nothing is small.
ZERO = 1e-6
# A claim to have converged stands if its residual, by the scale of the claimed point, is at most this times the
# tolerance.
CONFIRMED = 4.0
# Or if the gradient of x vanishes within this times the tolerance, in lengths of x.
NEAR = 10.0
# By a secant over a move that is at most this long, in the same lengths.
PLACE = 0.1


@dataclass(frozen=True)
class JointEvaluation:
    """An evaluation in rows, and its measures, (B,) each.

    Attributes:
        image: ``[f | g_z]``.
        g_x: the gradient of the Lagrangian in x.
        lag: how far z and mu are from their equilibrium: the larger of ``|f - z| / |f|`` and of ``|g_z - mu|`` relative
            to ``|g_z|`` or, where that is longer, to the natural length of a multiplier.
        size: what normalised steps divide g_x by: the length that it has where its terms do not cancel, for the
            multiplier of the start or this one, whichever is longer (see :meth:`Scale.gradient`); at least ``|g_x|``,
            and 1 where that is zero too. So steps shrink with mu where a fit becomes perfect.
        residual: the larger of ``lag`` and the projected gradient of x relative to its natural length.
        objective: J.
        distance: ``|f - z|_2``.
        slope: ``|g_z|_2``. For a convex J and a linear f, ``J(z, x) + |mu| |f - z|`` with the multiplier mu of the
            exact equilibrium of x bounds J there from above; the merit of an iterate is this bound, as far as mu is
            known.
        scope: ``|g_z| |f| + |natural g_x| |x|``: how much J may change over the lengths of z and x.
        figures: (B, 9) lag, the part of it that is of z, natural length of g_x, curvature and the :class:`Scale` by
            which all was measured.
    """

    image: Tensor
    g_x: Tensor
    lag: Tensor
    size: Tensor
    residual: Tensor
    objective: Tensor
    distance: Tensor
    slope: Tensor
    scope: Tensor
    figures: Tensor


@dataclass
class JointSystem:
    """The equations ``z = f``, ``mu = g_z``, ``x = Proj(x - a g_x)`` of some samples of a problem.

    Attributes:
        problem: of these samples.
        z, x: how states and inputs lie in the rows.
        dtype: of the rows, at least float32.
        settings: norm and tolerances by which residuals are measured.
        evaluation: how the problem is evaluated.
        scale: by what residuals are measured; from the first evaluation, unless it is given. It may get smaller, see
            :meth:`confirm`.
        first: the scale of the first evaluation, by which normalised steps are taken.
        origin: the rows of the first inputs.
        last_move: of x.
    """

    problem: JointProblem
    z: Layout
    x: Layout
    dtype: torch.dtype
    settings: LoopSettings
    evaluation: Evaluate = JointProblem.evaluate
    scale: Scale | None = None
    first: Scale | None = None
    origin: Tensor | None = None
    last_move: LastMove | None = None

    @classmethod
    def of(
        cls,
        problem: JointProblem,
        z: State,
        x: Tensor,
        settings: LoopSettings,
        evaluation: Evaluate = JointProblem.evaluate,
        scale: Scale | None = None,
    ) -> JointSystem:
        dtype = torch.promote_types(work_dtype(z), work_dtype(x))
        return cls(problem, Layout.of(z), Layout.of(x), dtype, settings, evaluation, scale, scale)

    @property
    def widths(self) -> list[int]:
        """Widths of the blocks z, mu and x."""
        return [self.z.width, self.z.width, self.x.width]

    def pack(self, z: State, mu: State, x: Tensor) -> Tensor:
        return torch.cat(
            [*self.z.rows(z, self.dtype), *self.z.rows(mu, self.dtype), *self.x.rows(x, self.dtype)], dim=1
        )

    def unpack(self, w: Tensor) -> tuple[State, State, Tensor]:
        """z, mu and x without gaps between samples, with which convolutions take longer."""
        z, mu, x = w.split(self.widths, dim=1)
        return _contiguous(self.z.unpack(z)), _contiguous(self.z.unpack(mu)), self._input(x).contiguous()

    def inputs(self, w: Tensor) -> Tensor:
        """The block of x in rows."""
        return w[:, 2 * self.z.width :]

    def project(self, x: Tensor) -> Tensor:
        """Rows of inputs onto the feasible set."""
        return self.x.pack(self.problem.feasible.project(self._input(x)), self.dtype)

    def evaluate(self, w: Tensor) -> JointEvaluation:
        z, mu, x = self.unpack(w)
        evaluation = self.evaluation(self.problem, z, x, mu)
        if self.scale is None:  # taken at f, because at a z0 of zeros x may not act yet (multiplicative injections)
            self.scale = self.first = self._scale_at(evaluation.f, x, recorded=evaluation.g_x.requires_grad)
        return self.measure(w, evaluation)

    def measure(self, w: Tensor, evaluation: Evaluation) -> JointEvaluation:
        """An evaluation at ``w`` in rows, with its measures: see :class:`JointEvaluation`."""
        image = torch.cat([*self.z.rows(evaluation.f, self.dtype), *self.z.rows(evaluation.g_z, self.dtype)], dim=1)
        g_x, objective = self.x.pack(evaluation.g_x, self.dtype), evaluation.objective.to(self.dtype)
        return self._measured(w, image, g_x, objective)

    def _measured(self, w: Tensor, image: Tensor, g_x: Tensor, objective: Tensor) -> JointEvaluation:
        """The measures. The projected gradient of x is taken over a step that would move x by its own length, or
        through the feasible set where that is smaller, if the terms of g_x did not cancel: see :meth:`_gradient`.
        """
        assert self.scale is not None and self.first is not None
        scale, norm, relative = self.scale, self.settings.norm, self.settings.relative
        multiplier, length = norm.of(w[:, self.z.width : 2 * self.z.width]), norm.of(g_x)
        size = torch.maximum(self.first.gradient(torch.maximum(multiplier, self.first.multiplier)), length)
        size = torch.where(size > 0, size, 1.0)
        with torch.no_grad():
            mu_length = torch.maximum(scale.multiplier, ZERO * self.first.multiplier)
            natural = torch.maximum(scale.gradient(torch.maximum(multiplier, mu_length)), length)
            f, g_z = image.split(self.z.width, dim=1)
            off_z, off_mu = (image - w[:, : image.shape[1]]).split(self.z.width, dim=1)
            off_f, off_g, f_length, slope = norm.of(off_z), norm.of(off_mu), norm.of(f), norm.of(g_z)
            state_lag = relative(off_f, torch.maximum(f_length, ZERO * self.first.state))
            lag = torch.maximum(state_lag, relative(off_g, torch.maximum(slope, mu_length)))
            distance = off_f
            if norm is not Norm.L2:  # in which alone |mu| |f - z| is a bound
                distance, slope, f_length = Norm.L2.of(off_z), Norm.L2.of(g_z), Norm.L2.of(f)
            x, gradient = self.inputs(w), self._gradient(w, g_x, natural)
            residual = torch.maximum(lag, relative(norm.of(gradient), natural))
            move = self._remember(x, gradient, lag * natural)
            scope = slope * f_length + natural * norm.of(x)
            figures = torch.cat([torch.stack([lag, state_lag, natural, move.curvature], 1), scale.rows], dim=1)
        return JointEvaluation(image, g_x, lag, size, residual, objective, distance, slope, scope, figures)

    def confirm(self, w: Tensor, evaluation: JointEvaluation, claimed: Tensor) -> JointEvaluation:
        """Claims to have converged are measured again by the scale of the claimed point: gradients may be a thousand
        times smaller there than at the start. A claim that stands by neither that scale nor the last secant is not
        confirmed, and from then on the sample is measured by the new scale.
        """
        assert self.scale is not None and self.last_move is not None and self.origin is not None
        x, tol = self.inputs(w), self.settings.tol
        travelled = (x - self.origin).norm(dim=1)
        length = torch.minimum(torch.maximum(travelled, 1e-3 * x.norm(dim=1)), self.scale.reach)
        local = self.last_move.length() <= PLACE * length  # else the secant is that of another place
        doubtful = claimed & ~(local & (self.last_move.distance() <= NEAR * tol * length))
        if not bool(doubtful.any()):
            return evaluation
        z, _, inputs = self.unpack(w)
        part = self.problem.pick(doubtful, inputs.dim())
        rows = self.scale.rows
        if part is None:
            here = self._scale_at(z, inputs).rows
        else:
            picked = state_of((one[doubtful] for one in tensors_of(z)), z)
            here = rows.index_put((doubtful.nonzero()[:, 0],), self._scale_at(picked, inputs[doubtful], part).rows)
        before, parts = self.scale, (evaluation.image, evaluation.g_x, evaluation.objective)
        self.scale = Scale(here)
        refuted = doubtful & (self._measured(w, *parts).residual > CONFIRMED * tol)
        self.scale = Scale(torch.where(refuted[:, None], here, rows)) if bool(refuted.any()) else before
        return self._measured(w, *parts)

    def pick(self, keep: Tensor) -> JointSystem | None:
        problem = self.problem.pick(keep, 1 + len(self.x.shapes[0]))
        if problem is None:
            return None
        return replace(
            self,
            problem=problem,
            scale=None if self.scale is None else Scale(self.scale.rows[keep]),
            first=None if self.first is None else Scale(self.first.rows[keep]),
            origin=None if self.origin is None else self.origin[keep],
            last_move=None if self.last_move is None else self.last_move.pick(keep),
        )

    def _gradient(self, w: Tensor, g_x: Tensor, size: Tensor) -> Tensor:
        """``(x - Proj(x - a g_x)) / a`` in rows: g_x itself where no constraint is active, without cancellation."""
        assert self.scale is not None
        if isinstance(self.problem.feasible, Everywhere):
            return g_x
        x = self.inputs(w)
        length = torch.minimum(self.settings.norm.of(x), self.scale.reach)
        other = torch.where(self.scale.reach.isfinite() & (self.scale.reach > 0), self.scale.reach, 1.0)
        length = torch.where(length > 0, length, other)
        a = torch.where(size > 0, length / torch.where(size > 0, size, 1.0), 1.0)[:, None]
        beyond = x - a * g_x
        return g_x + (beyond - self.project(beyond)) / a

    def _remember(self, x: Tensor, gradient: Tensor, blur: Tensor) -> LastMove:
        if self.last_move is None:
            self.origin, self.last_move = x, LastMove.none(x, gradient, blur)
        else:
            self.last_move = self.last_move.then(x, gradient, blur)
        return self.last_move

    def _scale_at(self, z: State, x: Tensor, problem: JointProblem | None = None, recorded: bool = False) -> Scale:
        found = Scale.at(problem or self.problem, z, x, self.settings.norm, recorded)
        return Scale(found.rows.to(self.dtype))

    def _input(self, rows: Tensor) -> Tensor:
        return rows.reshape(rows.shape[0], *self.x.shapes[0])


def _contiguous(state: State) -> State:
    return state_of((part.contiguous() for part in tensors_of(state)), state)
