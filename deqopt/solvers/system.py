"""What the loop evaluates: the stationary system with the scale by which it is measured."""

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
class JointEvaluation(Measured):
    """An evaluation: where it was made, what it yielded, and its measures, a row a sample.

    Beside what :class:`deqopt.iteration.Measured` has, whose ``point`` is ``[z | mu | x]`` and ``image`` ``[f | g_z]``:

    Attributes:
        g_x: the gradient of the Lagrangian in x.
        lag: (B,) how far z and mu are from their equilibrium: the larger of ``|f - z| / |f|`` and of ``|g_z - mu|``
            relative to ``|g_z|`` or, where that is longer, to the natural length of a multiplier.
        size: (B,) what normalised steps divide g_x by: the length that it has where its terms do not cancel, for the
            multiplier of the start or this one, whichever is longer (see :meth:`Scale.gradient`); at least ``|g_x|``,
            and 1 where that is zero too. So steps shrink with mu where a fit becomes perfect.

    The residual is the larger of ``lag`` and the projected gradient of x relative to its natural length, the objective
    J, the distance ``|f - z|_2`` and the slope ``|g_z|_2``. For a convex J and a linear f, ``J(z, x) + |mu| |f - z|``
    with the multiplier mu of the exact equilibrium of x bounds J there from above; the merit of an iterate is this
    bound, as far as mu is known. The scope is ``|g_z| |f| + |natural g_x| |x|``: how much J may change over the lengths
    of z and x. The figures, (B, 9), are lag, the part of it that is of z, natural length of g_x, curvature and the
    :class:`Scale` by which all was measured.

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
        """``[z | mu]`` where it was made."""
        return self.point[:, : self.image.shape[1]]

    @property
    def x(self) -> Tensor:
        """The input where it was made."""
        return self.point[:, self.image.shape[1] :]


@dataclass
class JointSystem(StationarySystem):
    """The stationary system as the loop sees it.

    Attributes:
        settings: norm and tolerances by which residuals are measured.
        scale: by what residuals are measured; from the first evaluation, unless it is given. It may get smaller, see
            :meth:`confirm`.
        first: the scale of the first evaluation, by which normalised steps are taken.
        origin: the rows of the first inputs.
        last_move: of x.

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
        if self.scale is None:  # taken at f, because at a z0 of zeros x may not act yet (multiplicative injections)
            self.scale = self.first = self._scale_at(evaluation.f, x, recorded=evaluation.g_x.requires_grad)
        return self.measure(w, evaluation)

    def measure(self, w: Tensor, evaluation: Evaluation) -> JointEvaluation:
        """An evaluation at ``w`` in rows, with its measures: see :class:`JointEvaluation`."""
        image, g_x = self.states(evaluation.f, evaluation.g_z), self.x.pack(evaluation.g_x, self.dtype)
        return self._measured(w, image, g_x, evaluation.objective.to(self.dtype))

    def _measured(self, w: Tensor, image: Tensor, g_x: Tensor, objective: Tensor) -> JointEvaluation:
        """The measures. The projected gradient of x is taken over a step that would move x by its own length, or
        through the feasible set where that is smaller, if the terms of g_x did not cancel: see :meth:`_gradient`.
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
            if norm is not Norm.L2:  # in which alone |mu| |f - z| is a bound
                distance, slope, f_length = Norm.L2.of(off_z), Norm.L2.of(g_z), Norm.L2.of(f)
            gradient = self._gradient(x, g_x, natural)
            residual = torch.maximum(lag, relative(norm.of(gradient), natural))
            move = self._remember(x, gradient, lag * natural)
            scope = slope * f_length + natural * norm.of(x)
            figures = torch.cat([torch.stack([lag, state_lag, natural, move.curvature], 1), scale.rows], dim=1)
        return JointEvaluation(w, image, residual, objective, distance, slope, scope, figures, g_x, lag, size)

    def confirm(self, at: JointEvaluation, claimed: Tensor) -> JointEvaluation:
        """Claims to have converged are measured again by the scale of the claimed point: gradients may be a thousand
        times smaller there than at the start. A claim that stands by neither that scale nor the last secant is not
        confirmed, and from then on the sample is measured by the new scale.
        """
        assert self.scale is not None and self.last_move is not None and self.origin is not None
        x, tol = at.x, self.settings.tol
        travelled = (x - self.origin).norm(dim=1)
        length = torch.minimum(torch.maximum(travelled, 1e-3 * x.norm(dim=1)), self.scale.reach)
        local = self.last_move.length() <= PLACE * length  # else the secant is that of another place
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
        """The projected gradient of x over a step that would move it by its own length, see :meth:`_measured`."""
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
