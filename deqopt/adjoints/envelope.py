"""The envelope theorem: the gradient of an outer loss that is a function of the inner objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deqopt.adjoint import Adjoint
from deqopt.adjoints.held import hold
from deqopt.adjoints.left_out import point_of, report_of, without_lost
from deqopt.adjoints.reporting import check_reaches_theta
from deqopt.connection import connect
from deqopt.equilibrium import BackwardReport, Equilibrium
from deqopt.feasible import FeasibleSet
from deqopt.problem import JointProblem
from deqopt.usable import UsablePoint


@dataclass(frozen=True)
class Envelope(Adjoint):
    """``d_theta J* = d_theta [J(z, x) + <mu, f(z, x)>]`` at the solution, with z, x and mu held fixed.

    It is exact (Danskin; to first order in the residual) for losses that are functions of ``eq.objective`` alone. It
    costs one evaluation and needs no second solve. ``eq.z``, ``eq.x`` and ``eq.mu`` carry no gradient to theta; the
    backward pass of a loss that depends on them warns.

    If the projection onto the feasible set carries a gradient, the gradient to the parameters of the set is added, see
    :func:`envelope_objective`.

    Example, with the problem and the start of :class:`deqopt.JointProblem`'s:
        >>> from deqopt.solvers import JointAnderson
        >>> eq = JointAnderson(tol=1e-5).solve(problem, z0, x0, adjoint=Envelope())
        >>> torch.autograd.grad(eq.objective.sum(), weight)  # J* = 3 (1 - w)^2 / (1 + (1 - w)^2) a sample
        (tensor(-3.8400),)
    """

    def attach(self, problem: JointProblem, equilibrium: Equilibrium) -> Equilibrium:
        who, report = type(self).__name__, report_of(equilibrium)
        objective = envelope_objective(who, point_of(who, problem, equilibrium), equilibrium.objective, report)
        return hold(replace(equilibrium, objective=objective, backward=report), ("z", "x", "mu"), who)


def envelope_objective(who: str, point: UsablePoint, objective: Tensor, report: BackwardReport) -> Tensor:
    """``objective``, (B,), with the gradient of

        J(z, x) + <mu, f(z, x)> + <g_x, Proj_X(x - a g_x)>

    in theta and in the parameters of X, at a point that is held fixed. The last term has the same gradient as
    ``1 / (2 a)`` times the squared distance of ``x - a g_x`` from X: it is the decrease of the optimum when X becomes
    larger. At an optimum, the value of a does not matter; here the step is as long as x. Samples that are lost
    according to the report get no gradient, nor do samples with a gradient of the loss that is not finite: see
    :func:`deqopt.adjoints.left_out.without_lost`.

    Args:
        who: name of the adjoint, for warnings.

    Raises:
        ProblemError: nothing carries a gradient.
        NonFiniteError: see :meth:`UsablePoint.check`.
    """
    with torch.enable_grad():
        value, _, _ = point.problem.lagrangian(point.z, point.x, point.mu)
        point.check(value)
        bounds = _value_of_bounds(point)
        if bounds is not None:
            value = value + bounds
    check_reaches_theta(value)
    lost, dtype = report.lost, value.dtype

    def pull(cotangents: tuple[Tensor, ...]) -> list[Tensor]:
        assert lost is not None
        _, (kept,) = without_lost(who, report, lost, cotangents)
        return [kept.to(dtype)]

    return connect([objective], [value], pull)[0]


def _value_of_bounds(point: UsablePoint) -> Tensor | None:
    """``<g_x, Proj_X(x - a g_x)>``, (B,), with g_x and x held fixed; None if X has no learned parameters."""
    problem, x = point.problem, point.x
    if not (_learns(problem.feasible) or problem.feasible.project(x).requires_grad):
        return None
    g = problem.evaluate(point.z, x, point.mu).g_x
    length, slope = (torch.linalg.vector_norm(part.flatten(1), dim=1, dtype=torch.float64) for part in (x, g))
    a = torch.where(length > 0, length, 1.0) / torch.where(slope > 0, slope, torch.inf)
    moved = problem.feasible.project(x - a.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1)) * g)
    return (g * moved).flatten(1).sum(1) if moved.requires_grad else None


def _learns(part: Any) -> bool:
    """Whether a set has a learned parameter: the projection may depend on it at some points and not at others."""
    if isinstance(part, Tensor):
        return part.requires_grad
    if isinstance(part, nn.Module):
        return any(parameter.requires_grad for parameter in part.parameters())
    if isinstance(part, Mapping):
        return any(map(_learns, part.values()))
    if isinstance(part, (tuple, list)):
        return any(map(_learns, part))
    return isinstance(part, FeasibleSet) and _learns(vars(part))
