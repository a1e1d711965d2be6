"""Gradients through the whole stationary system, by the implicit function theorem."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deqopt.adjoint import Adjoint
from deqopt.adjoints.envelope import envelope_objective
from deqopt.adjoints.left_out import point_of, report_of, without_lost, without_useless
from deqopt.adjoints.linearised import Linearised
from deqopt.connection import connect
from deqopt.equilibrium import BackwardReport, Equilibrium, FixedPoint
from deqopt.iteration import Status
from deqopt.problem import JointProblem
from deqopt.state import State, state_of, tensors_of, zero_where

Multiplier = Callable[[Linearised, Tensor, Tensor], tuple[Tensor, BackwardReport]]


@dataclass(frozen=True)
class StationaryAdjoint(Adjoint):
    """``d loss / d theta = lam^T d_theta F`` with ``(d_w F)^T lam = -d_w loss``, or with an approximation of this lam.

    ``eq.z``, ``eq.x`` and ``eq.mu`` carry the gradient of any outer loss, and ``eq.objective`` carries that of the
    envelope theorem. The backward pass fills ``eq.backward``. Samples that are not ``differentiable``, or whose
    backward solve diverged, get no gradient. For a plain fixed point, ``F = f(z) - z``.
    """

    def step_of_x(self) -> float | None:
        """The step a in ``Proj_X(x - a g_x)``; if None, it is measured."""
        return None

    @abstractmethod
    def multiplier(self, system: Linearised, cotangent: Tensor, lost: Tensor) -> tuple[Tensor, BackwardReport]:
        """lam for ``cotangent = d_w loss``, both (B, width), and the report. The cotangent of ``lost`` samples is 0."""

    def attach(self, problem: JointProblem, equilibrium: Equilibrium) -> Equilibrium:
        who, report = type(self).__name__, report_of(equilibrium)
        point = point_of(who, problem, equilibrium)
        objective = envelope_objective(who, point, equilibrium.objective, report)
        system = Linearised.of_problem(point.problem, point.z, point.mu, point.x, self.step_of_x())
        w = connected(who, system, equilibrium.values, report, self.multiplier)
        return equilibrium.with_values(w, objective, report)

    def attach_fixed_point(self, f: Callable[[State], State], found: FixedPoint) -> FixedPoint:
        report = BackwardReport(lost=~found.differentiable)
        at = zero_where(~found.differentiable, found.z)
        z = connected_map(type(self).__name__, f, at, found.z, report, self.multiplier)
        return replace(found, z=z, backward=report)


def connected_map(
    who: str, f: Callable[[State], State], at: State, z: State, report: BackwardReport, multiplier: Multiplier
) -> State:
    """The values z, connected to f at ``at``, which equals z except in the samples that the report lists as lost.

    Args:
        who: name of the adjoint, for warnings in the backward pass.
    """
    assert report.lost is not None
    system = Linearised.of_map(f, at, report.lost)
    return state_of(connected(who, system, tensors_of(z), report, multiplier), z)


def connected(
    who: str, system: Linearised, values: Sequence[Tensor], report: BackwardReport, multiplier: Multiplier
) -> tuple[Tensor, ...]:
    """The values of the unknowns, with gradients to everything that F depends on. Every backward pass solves for the
    multiplier again."""
    known = report.lost

    def pull(cotangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.autocast(system.residual.device.type, enabled=False):
            assert known is not None
            lost, (cotangent,) = without_lost(who, report, known, [system.pack(cotangents)])
            lam, found = multiplier(system, cotangent, lost)
            assert found.residual is not None and found.status is not None
            report.residual, report.nfe = found.residual.masked_fill(lost, torch.nan), found.nfe
            report.status = found.status.masked_fill(lost, int(Status.NON_FINITE))
            return without_useless(report, found.status, [lam])

    return connect(values, [system.residual], pull)
