"""The implicit gradient of a plain fixed point: to parameters, and to whatever else its map reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deqopt.adjoints.base import once
from deqopt.equilibrium import BackwardReport
from deqopt.fixed_point import Anderson, FixedPointSolver
from deqopt.iteration import Status
from deqopt.problem import pull_back
from deqopt.state import State, leaf, state_of, tensors_of, zero_where


def implicit_fixed_point(
    f: Callable[[State], State],
    z: State,
    solver: FixedPointSolver | None = None,
    lost: Tensor | None = None,
) -> tuple[State, BackwardReport]:
    """The values of ``z = f(z)``, connected to all that f reaches: ``d loss = u^T d f`` with

        u = (d_z f)^T u + d_z loss

    (Bai, Kolter, Koltun: Deep equilibrium models, 2019). f may reach anything that carries a gradient, such as an input
    that was itself optimised. Must be called with autograd enabled.

    Args:
        f: as it was solved; must not couple samples.
        z: the fixed point, (B, *state) or a tuple of such, from :meth:`FixedPointSolver.solve`.
        solver: of the equation for u; by default Anderson mixing with 50 products and a tolerance of 1e-3.
        lost: (B,) samples that get no gradient.

    Returns:
        z, and a report that the backward pass fills.
    """
    solver = solver or Anderson(max_nfe=50, tol=1e-3)
    lost = (
        torch.zeros(len(tensors_of(z)[0]), dtype=torch.bool, device=tensors_of(z)[0].device) if lost is None else lost
    )
    with torch.enable_grad():
        at = leaf(zero_where(lost, z))
        images = tensors_of(f(at))
    report = BackwardReport()
    values = _Attach.apply(solver, tensors_of(at), lost, report, *images, *tensors_of(z))
    return state_of(values, z), report


class _Attach(torch.autograd.Function):
    """The values of the fixed point; backward turns their cotangents into those of f."""

    @staticmethod
    def forward(
        ctx: Any,
        solver: FixedPointSolver,
        z: tuple[Tensor, ...],
        lost: Tensor,
        report: BackwardReport,
        *f_and_values: Tensor,
    ) -> tuple[Tensor, ...]:
        f, values = f_and_values[: len(z)], f_and_values[len(z) :]
        ctx.solver, ctx.f, ctx.z, ctx.lost, ctx.report = solver, f, z, lost, report
        return tuple(value.detach() for value in values)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        v = tensors_of(zero_where(ctx.lost, cotangents))

        def adjoint_map(u: State) -> State:
            through = pull_back(ctx.f, ctx.z, tensors_of(u), retain_graph=True)
            return tuple(one + other for one, other in zip(v, through, strict=True))

        with torch.no_grad():
            found = ctx.solver.solve(adjoint_map, v)
        ctx.report.residual, ctx.report.nfe = found.residual, found.nfe
        ctx.report.status = found.status.masked_fill(ctx.lost, int(Status.NON_FINITE))
        u = tensors_of(found.z)
        return (
            None,
            None,
            None,
            None,
            *(once(part, one) for part, one in zip(u, ctx.f, strict=True)),
            *(None for _ in v),
        )
