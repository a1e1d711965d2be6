"""The stationary system that the loop evaluates, with the scale of its residuals."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deqopt.batch import pick
from deqopt.feasible import Everywhere
from deqopt.iteration import Measured
from deqopt.loop_settings import LoopSettings, Norm
from deqopt.problem import Evaluation, JointProblem
from deqopt.scale import Scale
from deqopt.solvers.last_move import LastMove
from deqopt.state import Layout, State, state_of, tensors_of
from deqopt.stationary import StationarySystem, rows_dtype

# A state or multiplier counts as zero below this share of its length at the start: no residual is small relative to 0.
ZERO = 1e-6
# A claim of convergence is confirmed if its residual, on the scale of the claimed point, is at most this times the
# tolerance.
CONFIRMED = 4.0
# It is also confirmed if the gradient of x vanishes within this times the tolerance, in lengths of x,
NEAR = 10.0
# by a secant over a move that is at most this long, in the same lengths.
PLACE = 0.1


@dataclass(frozen=True)
class JointEvaluation(Measured):
    """An evaluation: its point, its results and its measures, one row per sample.

    It adds the attributes below to those of :class:`deqopt.iteration.Measured`, where ``point`` is ``[z | mu | x]`` and
    ``image`` is ``[f | g_z]``.

    Attributes:
        g_x: the gradient of the Lagrangian in x.
        lag: (B,) distance of z and mu from their equilibrium: the larger of ``|f - z| / |f|`` and of ``|g_z - mu|``
            relative to ``|g_z|`` or to the natural length of a multiplier, whichever is longer.
        size: (B,) the divisor of g_x in normalised steps: the length that g_x would have if its terms did not cancel,
            for the multiplier of the start or the present one, whichever is longer (see :meth:`Scale.gradient`). It is
            at least ``|g_x|``, and 1 where this is zero too. So steps shrink with mu when a fit becomes perfect.

    The residual is the larger of ``lag`` and the projected gradient of x relative to its natural length. The objective
    is J, the distance is ``|f - z|_2`` and the slope is ``|g_z|_2``. For a convex J and a linear f, let mu be the
    multiplier of the exact equilibrium of x: then ``J(z, x) + |mu| |f - z|`` is an upper bound of J at that
    equilibrium. The merit of an iterate is this bound, as far as mu is known. The scope is ``|g_z| |f| + |natural g_x|
    |x|``: the largest change of J over the lengths of z and x. The figures, (B, 9), are the lag, its part due to z, the
    natural length of g_x, the curvature and the :class:`Scale` of all measures.

    Example:
        >>> from deqopt.solvers import Tracking
        >>> system = JointSystem.of(problem, z0, x0, Tracking())
        >>> at = system.evaluate(system.pack(z0, z0, x0))
        >>> x = system.project(at.x - 0.1 * at.g_x)  # a gradient step
    """

    g_x: Tensor
    lag: Tensor
    size: Tensor

    @property
    def states(self) -> Tensor:
        """``[z | mu]`` of the evaluated point."""
        return self.point[:, : self.image.shape[1]]

    @property
    def x(self) -> Tensor:
        """The input of the evaluated point."""
        return self.point[:, self.image.shape[1] :]


@dataclass
class JointSystem(StationarySystem):
    """The stationary system as the loop sees it.

    Attributes:
        settings: norm and tolerances of the residuals.
        scale: scale of the residuals; taken from the first evaluation unless given. It may get smaller later, see
            :meth:`confirm`.
        first: the scale of the first evaluation, which sets the length of normalised steps.
        origin: the rows of the first inputs.
        last_move: the last move of x.

    Example:
        >>> from deqopt.solvers import Tracking
        >>> system = JointSystem.of(problem, z0, x0, Tracking())
        >>> at = system.evaluate(system.pack(z0, z0, x0))
        >>> at.image.shape == at.states.shape, system.project(at.x).shape == at.x.shape
        (True, True)
    """

    settings: LoopSettings
    scale: Scale | None = None
    first: Scale | None = None
    origin: Tensor | None = None
    last_move: LastMove | None = None

    @classmethod
    def of(
        cls, problem: JointProblem, z: State, x: Tensor, settings: LoopSettings, scale: Scale | None = None
    ) -> JointSystem:
        return cls(problem, Layout.of(z), Layout.of(x), rows_dtype(z, x), settings, scale, scale)

    def evaluate(self, w: Tensor) -> JointEvaluation:
        z, mu, x = self.unpack(w)
        evaluation = self.problem.evaluate(z, x, mu)
        if self.scale is None:  # taken at f, because x may have no effect at a z0 of zeros (multiplicative injections)
            self.scale = self.first = self._scale_at(evaluation.f, x, recorded=evaluation.g_x.requires_grad)
        return self.measure(w, evaluation)

    def measure(self, w: Tensor, evaluation: Evaluation) -> JointEvaluation:
        """An evaluation at the rows ``w``, with its measures: see :class:`JointEvaluation`."""
        image, g_x = self.states(evaluation.f, evaluation.g_z), self.x.pack(evaluation.g_x, self.dtype)
        return self._measured(w, image, g_x, evaluation.objective.to(self.dtype))

    def _measured(self, w: Tensor, image: Tensor, g_x: Tensor, objective: Tensor) -> JointEvaluation:
        """The measures of an evaluation. The projected gradient of x is that of a step that would move x by its own
        length, or by the width of the feasible set if that is smaller, if the terms of g_x did not cancel: see
        :meth:`_gradient`.
        """
        assert self.scale is not None and self.first is not None
        scale, norm, relative = self.scale, self.settings.norm, self.settings.relative
        states, x = self.split(w)
        multiplier, length = norm.of(states[:, self.z.width :]), norm.of(g_x)
        size = torch.maximum(self.first.gradient(torch.maximum(multiplier, self.first.multiplier)), length)
        size = torch.where(size > 0, size, 1.0)
        with torch.no_grad():
            mu_length = torch.maximum(scale.multiplier, ZERO * self.first.multiplier)
            natural = torch.maximum(scale.gradient(torch.maximum(multiplier, mu_length)), length)
            f, g_z = image.split(self.z.width, dim=1)
            off_z, off_mu = (image - states).split(self.z.width, dim=1)
            off_f, off_g, f_length, slope = norm.of(off_z), norm.of(off_mu), norm.of(f), norm.of(g_z)
            state_lag = relative(off_f, torch.maximum(f_length, ZERO * self.first.state))
            lag = torch.maximum(state_lag, relative(off_g, torch.maximum(slope, mu_length)))
            distance = off_f
            if norm is not Norm.L2:  # |mu| |f - z| is a bound only in L2
                distance, slope, f_length = Norm.L2.of(off_z), Norm.L2.of(g_z), Norm.L2.of(f)
            gradient = self._gradient(x, g_x, natural)
            residual = torch.maximum(lag, relative(norm.of(gradient), natural))
            move = self._remember(x, gradient, lag * natural)
            scope = slope * f_length + natural * norm.of(x)
            figures = torch.cat([torch.stack([lag, state_lag, natural, move.curvature], 1), scale.rows], dim=1)
        return JointEvaluation(w, image, residual, objective, distance, slope, scope, figures, g_x, lag, size)

    def confirm(self, at: JointEvaluation, claimed: Tensor) -> JointEvaluation:
        """Measure the rows that claim to have converged again on the scale of the claimed point: gradients may be a
        thousand times smaller there than at the start. A claim that neither this scale nor the last secant confirms is
        rejected, and the sample is measured on the new scale from then on.
        """
        assert self.scale is not None and self.last_move is not None and self.origin is not None
        x, tol = at.x, self.settings.tol
        travelled = (x - self.origin).norm(dim=1)
        length = torch.minimum(torch.maximum(travelled, 1e-3 * x.norm(dim=1)), self.scale.reach)
        local = self.last_move.length() <= PLACE * length  # otherwise the secant describes another place
        doubtful = claimed & ~(local & (self.last_move.distance() <= NEAR * tol * length))
        if not bool(doubtful.any()):
            return at
        z, _, inputs = self.unpack(at.point)
        part = self.problem.pick(doubtful, inputs.dim())
        rows = self.scale.rows
        if part is None:
            here = self._scale_at(z, inputs).rows
        else:
            picked = state_of((one[doubtful] for one in tensors_of(z)), z)
            here = rows.index_put((doubtful.nonzero()[:, 0],), self._scale_at(picked, inputs[doubtful], part).rows)
        before, parts = self.scale, (at.point, at.image, at.g_x, at.objective)
        self.scale = Scale(here)
        refuted = doubtful & (self._measured(*parts).residual > CONFIRMED * tol)
        self.scale = Scale(torch.where(refuted[:, None], here, rows)) if bool(refuted.any()) else before
        return self._measured(*parts)

    def pick(self, keep: Tensor) -> JointSystem | None:
        problem = self.problem.pick(keep, 1 + len(self.x.shapes[0]))
        if problem is None:
            return None
        known = {name: pick(getattr(self, name), keep) for name in ("scale", "first", "origin", "last_move")}
        return replace(self, problem=problem, **known)

    def _gradient(self, x: Tensor, g_x: Tensor, size: Tensor) -> Tensor:
        """The projected gradient of x for a step that would move x by its own length, see :meth:`_measured`."""
        assert self.scale is not None
        if isinstance(self.problem.feasible, Everywhere):
            return g_x
        length = torch.minimum(self.settings.norm.of(x), self.scale.reach)
        other = torch.where(self.scale.reach.isfinite() & (self.scale.reach > 0), self.scale.reach, 1.0)
        length = torch.where(length > 0, length, other)
        a = torch.where(size > 0, length / torch.where(size > 0, size, 1.0), 1.0)
        return self.projected_gradient(x, g_x, a[:, None])

    def _remember(self, x: Tensor, gradient: Tensor, blur: Tensor) -> LastMove:
        if self.last_move is None:
            self.origin, self.last_move = x, LastMove.none(x, gradient, blur)
        else:
            self.last_move = self.last_move.then(x, gradient, blur)
        return self.last_move

    def _scale_at(self, z: State, x: Tensor, problem: JointProblem | None = None, recorded: bool = False) -> Scale:
        found = Scale.at(problem or self.problem, z, x, self.settings.norm, recorded)
        return Scale(found.rows.to(self.dtype))
