"""The implicit gradient of the equilibrium alone, as if its input were given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deqopt.adjoints.base import Adjoint, once
from deqopt.adjoints.envelope import Envelope
from deqopt.equilibrium import BackwardReport, Equilibrium
from deqopt.errors import ProblemError
from deqopt.fixed_point import Anderson
from deqopt.iteration import Status
from deqopt.problem import JointProblem, pull_back
from deqopt.state import State, leaf, state_of, tensors_of, zero_where


@dataclass(frozen=True)
class InputHeld(Adjoint):
    """Implicit differentiation of ``z = f(z, x)`` with x held: ``d loss / d theta = u^T d_theta f`` with

        u = (d_z f)^T u + d_z loss

    (Bai, Kolter, Koltun: Deep equilibrium models, 2019). It is the gradient where x is given; here x is optimised, and
    what theta does to it is left out, as in the published code of joint inference. A cheap gradient for comparison:
    ``eq.z`` carries it, ``eq.x`` and ``eq.mu`` carry none, ``eq.objective`` that of the envelope theorem.

    Args:
        tol: of the relative residual of u.
        max_nfe: products with ``(d_z f)^T`` a backward pass.
    """

    tol: float = 1e-3
    max_nfe: int = 50

    def __post_init__(self) -> None:
        if not self.tol > 0 or self.max_nfe < 1:
            raise ProblemError(f"tol must be larger than 0 and max_nfe at least 1, got {self.tol} and {self.max_nfe}")

    def attach(self, problem: JointProblem, equilibrium: Equilibrium) -> Equilibrium:
        attached = Envelope().attach(problem, equilibrium)
        lost = ~equilibrium.usable
        with torch.enable_grad():
            z = leaf(zero_where(lost, equilibrium.z))
            (x,) = tensors_of(zero_where(lost, equilibrium.x))
            f = tensors_of(problem.f(z, x))
        report = BackwardReport()
        values = _Attach.apply(self, tensors_of(z), lost, report, *f, *tensors_of(equilibrium.z))
        return replace(attached, z=state_of(values, z), backward=report)

    def multiplier(
        self, f: Sequence[Tensor], z: Sequence[Tensor], v: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, ...], BackwardReport]:
        """u for ``v = d_z loss``, parts of a state each, and how it was found."""

        def adjoint_map(u: State) -> State:
            through = pull_back(f, z, tensors_of(u), retain_graph=True)
            return tuple(one + other for one, other in zip(v, through, strict=True))

        found = Anderson(max_nfe=self.max_nfe, tol=self.tol).solve(adjoint_map, tuple(v))
        return tensors_of(found.z), BackwardReport(found.residual, found.status, found.nfe)


class _Attach(torch.autograd.Function):
    """The values of the state; backward turns their cotangents into those of f."""

    @staticmethod
    def forward(
        ctx: Any,
        adjoint: InputHeld,
        z: tuple[Tensor, ...],
        lost: Tensor,
        report: BackwardReport,
        *f_and_values: Tensor,
    ) -> tuple[Tensor, ...]:
        f, values = f_and_values[: len(z)], f_and_values[len(z) :]
        ctx.adjoint, ctx.f, ctx.z, ctx.lost, ctx.report = adjoint, f, z, lost, report
        return tuple(value.detach() for value in values)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            v = tensors_of(zero_where(ctx.lost, cotangents))
            u, found = ctx.adjoint.multiplier(ctx.f, ctx.z, v)
        status = found.status
        assert status is not None
        ctx.report.residual, ctx.report.nfe = found.residual, found.nfe
        ctx.report.status = status.masked_fill(ctx.lost, int(Status.NON_FINITE))
        return (
            None,
            None,
            None,
            None,
            *(once(part, one) for part, one in zip(u, ctx.f, strict=True)),
            *(None for _ in v),
        )
