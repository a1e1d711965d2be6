"""Gradients through the whole stationary system, by the implicit function theorem."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deqopt.adjoints.base import Adjoint, once
from deqopt.adjoints.envelope import envelope_objective
from deqopt.adjoints.left_out import point_of, report_of, without_lost, without_useless
from deqopt.equilibrium import BackwardReport, Equilibrium
from deqopt.errors import ProblemError
from deqopt.iteration import Status
from deqopt.problem import Evaluation, JointProblem, pull_back
from deqopt.state import Layout, State, leaf, state_of, tensors_of, work_dtype

# The least length, in units of x, of a change of x by which its effect is measured.
MIN_PROBE = 1e-3


@dataclass(frozen=True)
class StationarySystem:
    """The stationary system as a fixed-point residual, linearised at a solution ``w = (z, mu, x)``:

        F(w; theta) = [ f(z, x) - z | g_z - mu | Proj_X(x - a g_x) - x ]

    Its Jacobian is near -1 where f contracts and ``a`` fits the curvature of the Lagrangian in x. Active constraints,
    and their curvature, are in the derivative of the projection. The implicit gradient depends on neither ``a`` nor
    ``scale``.

    Attributes:
        residual: F, (B, width); differentiable in ``unknowns`` and theta.
        unknowns: w, as leaves.
        layout: how w lies in the rows of F.
        scale: (B, width) natural lengths of the unknowns, the same for all entries of z, of mu and of x.
        nfe: products spent on finding ``a`` and ``scale``.
    """

    residual: Tensor
    unknowns: tuple[Tensor, ...]
    layout: Layout
    scale: Tensor
    nfe: int

    @classmethod
    def at(
        cls, problem: JointProblem, z: State, mu: State, x: Tensor, step_size: float | None = None
    ) -> StationarySystem:
        """The system at ``(z, mu, x)``, in at least float32 also under autocast.

        Args:
            step_size: a; measured if None, see :func:`_measured`.

        Raises:
            ProblemError: the projection cannot be differentiated.
        """
        dtype = torch.promote_types(work_dtype(z), work_dtype(x))
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            z, mu, x = leaf(_as(z, dtype)), leaf(_as(mu, dtype)), x.detach().to(dtype).requires_grad_()
            unknowns = (*tensors_of(z), *tensors_of(mu), x)
            layout = Layout.of(unknowns)
            evaluation = problem.evaluate_with_graph(z, x, mu)
            if step_size is None:
                a, scale = _measured(evaluation, z, mu, x)
            else:
                a, scale = x.new_full((len(x),), step_size), torch.ones_like(layout.pack(unknowns, dtype))
            moved = problem.feasible.project(x - a.reshape(-1, *[1] * (x.dim() - 1)) * evaluation.g_x)
            if not moved.requires_grad:
                raise ProblemError(
                    f"{type(problem.feasible).__name__}.project cannot be differentiated: write it with torch "
                    "operations, without no_grad, detach or numpy"
                )
            images = (*tensors_of(evaluation.f), *tensors_of(evaluation.g_z), moved)
            residual = layout.pack(images, dtype) - layout.pack(unknowns, dtype)
        return cls(residual, unknowns, layout, scale, 0 if step_size is not None else 3)

    def transposed(self, rows: Tensor) -> Tensor:
        """``(d_w F)^T rows``, (B, width): one double-backward through f and J."""
        return self.pack(pull_back([self.residual], self.unknowns, [rows], retain_graph=True))

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        return self.layout.pack(tuple(parts), self.residual.dtype)


def _measured(evaluation: Evaluation, z: State, mu: State, x: Tensor) -> tuple[Tensor, Tensor]:
    """A step length a, (B,), that fits the curvature in x, and natural lengths of z, mu and x in rows.

    x is moved by a random p of its own length, z and mu follow by one application of their equations, and the
    Lagrangian's gradient changes by

        K p = H_xx p + (d_x f)^T (H_zz d_x f p + H_zx p) + H_xz d_x f p.

    ``a = |p| / (4 |K p|)``: with half of it or three times as much GMRES needs more products, on decoders.
    """
    f, g_z, g_x = tensors_of(evaluation.f), tensors_of(evaluation.g_z), evaluation.g_x
    states, inputs = tensors_of(z), (*tensors_of(z), *tensors_of(mu), x)
    direction = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    length = _norm([x]).clamp_min(MIN_PROBE)
    p = (direction / direction.norm()).to(x) * length.reshape(-1, *[1] * (x.dim() - 1))
    pulled = pull_back([g_x], inputs, [p], retain_graph=True)
    z_moved = pulled[len(states) : 2 * len(states)]
    *mu_moved, direct = pull_back([*g_z, g_x], (*states, x), [*z_moved, p], retain_graph=True)
    (through,) = pull_back(f, (x,), mu_moved, retain_graph=True)
    change = _norm([direct + through])
    a = length / torch.maximum(4 * change, 1e-3 * _norm([g_x]))
    lengths = [_norm(states) + _norm(z_moved), _norm(tensors_of(mu)) + _norm(mu_moved), length]
    widths = [sum(part.shape[1:].numel() for part in states)] * 2 + [x.shape[1:].numel()]
    scale = torch.stack(lengths, 1).repeat_interleave(torch.tensor(widths, device=x.device), dim=1)
    return torch.where(a.isfinite(), a, 1.0), torch.where(scale.isfinite() & (scale > 0), scale, 1.0).detach()


@dataclass(frozen=True)
class StationaryAdjoint(Adjoint):
    """``d loss / d theta = lam^T d_theta F`` with ``(d_w F)^T lam = -d_w loss``, or with a lam close to that.

    ``eq.z``, ``eq.x`` and ``eq.mu`` carry the gradients of any outer loss, ``eq.objective`` that of the envelope
    theorem. ``eq.backward`` is filled by the backward pass. Samples that are not ``differentiable``, or whose backward
    solve diverged, get no gradient.
    """

    def step_of_x(self) -> float | None:
        """a in ``Proj_X(x - a g_x)``; None has it measured."""
        return None

    @abstractmethod
    def multiplier(self, system: StationarySystem, cotangent: Tensor, lost: Tensor) -> tuple[Tensor, BackwardReport]:
        """lam for ``cotangent = d_w loss``, (B, width) both, and how it was found. ``lost`` samples, (B,), have 0."""

    def attach(self, problem: JointProblem, equilibrium: Equilibrium) -> Equilibrium:
        who, report = type(self).__name__, report_of(equilibrium)
        point = point_of(who, problem, equilibrium)
        objective = envelope_objective(who, point, equilibrium.objective, report)
        system = StationarySystem.at(point.problem, point.z, point.mu, point.x, self.step_of_x())
        values = (*tensors_of(equilibrium.z), *tensors_of(equilibrium.mu), equilibrium.x)
        z_and_mu = _Attach.apply(self, system, report, system.residual, *values)
        z, count = equilibrium.z, len(tensors_of(equilibrium.z))
        return replace(
            equilibrium,
            z=state_of(z_and_mu[:count], z),
            mu=state_of(z_and_mu[count:-1], z),
            x=z_and_mu[-1],
            objective=objective,
            backward=report,
        )


class _Attach(torch.autograd.Function):
    """The values of the solution; backward turns their cotangents into that of F."""

    @staticmethod
    def forward(
        ctx: Any,
        adjoint: StationaryAdjoint,
        system: StationarySystem,
        report: BackwardReport,
        residual: Tensor,
        *values: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.adjoint, ctx.system, ctx.report, ctx.lost = adjoint, system, report, report.lost
        return tuple(value.detach() for value in values)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        adjoint, system, report = ctx.adjoint, ctx.system, ctx.report
        with torch.no_grad(), torch.autocast(system.residual.device.type, enabled=False):
            packed = system.pack(cotangents)
            lost, (cotangent,) = without_lost(type(adjoint).__name__, report, ctx.lost, [packed])
            lam, found = adjoint.multiplier(system, cotangent, lost)
            assert found.residual is not None and found.status is not None
            report.residual, report.nfe = found.residual.masked_fill(lost, torch.nan), found.nfe
            report.status = found.status.masked_fill(lost, int(Status.NON_FINITE))
            (lam,) = without_useless(report, found.status, [lam])
        return None, None, None, once(lam, system.residual), *(None for _ in cotangents)


def _as(state: State, dtype: torch.dtype) -> State:
    return state_of((part.to(dtype) for part in tensors_of(state)), state)


def _norm(parts: Sequence[Tensor]) -> Tensor:
    """(B,) length of all parts of a sample together."""
    return torch.stack([part.detach().flatten(1).square().sum(1) for part in parts]).sum(0).sqrt()
