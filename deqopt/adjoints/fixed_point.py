"""The implicit gradient of a plain fixed point: to parameters, and to whatever else its map reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deqopt.adjoints.base import once, warn_of_backward, worst_of
from deqopt.adjoints.left_out import without_lost, without_useless
from deqopt.equilibrium import BackwardReport
from deqopt.errors import NonFiniteError
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
    that was itself optimised. Must be called with autograd enabled. The backward pass warns of samples for whose u the
    solver ends above its tolerance.

    Args:
        f: as it was solved; must not couple samples.
        z: the fixed point, (B, *state) or a tuple of such, from :meth:`FixedPointSolver.solve`.
        solver: of the equation for u; by default Anderson mixing with 50 products and a tolerance of 1e-3.
        lost: (B,) samples that get no gradient.

    Returns:
        z, and a report that the backward pass fills.

    Raises:
        NonFiniteError: f is NaN or infinite at 0 for some of the samples that are ``lost``: what it closes over would
            make the gradient of all others NaN.
    """
    solver = solver or Anderson(max_nfe=50, tol=1e-3)
    first = tensors_of(z)[0]
    if lost is None:
        lost = torch.zeros(len(first), dtype=torch.bool, device=first.device)
    report = BackwardReport(lost=lost)
    return attach_fixed_point("implicit_fixed_point", f, zero_where(lost, z), z, solver, report), report


def attach_fixed_point(
    who: str, f: Callable[[State], State], at: State, z: State, solver: FixedPointSolver, report: BackwardReport
) -> State:
    """The values z, connected to f at ``at``, which is z but in the samples that the report has as lost.

    Args:
        who: warns in the backward pass.
        report: filled by the backward pass.
    """
    with torch.enable_grad():
        at = leaf(at)
        images = tensors_of(f(at))
    finite = torch.stack([part.detach().flatten(1).isfinite().all(1) for part in images]).all(0)
    spoiled = [] if report.lost is None else (report.lost & ~finite).nonzero()[:, 0].tolist()
    if 0 < len(spoiled) < len(finite):
        raise NonFiniteError(
            f"what f closes over is NaN or infinite for the samples {', '.join(map(str, spoiled))}, and their gradient "
            "would make that of all others NaN: leave them out"
        )
    return state_of(_Attach.apply(who, solver, tensors_of(at), report, *images, *tensors_of(z)), z)


class _Attach(torch.autograd.Function):
    """The values of the fixed point; backward turns their cotangents into those of f."""

    @staticmethod
    def forward(
        ctx: Any,
        who: str,
        solver: FixedPointSolver,
        z: tuple[Tensor, ...],
        report: BackwardReport,
        *f_and_values: Tensor,
    ) -> tuple[Tensor, ...]:
        f, values = f_and_values[: len(z)], f_and_values[len(z) :]
        ctx.who, ctx.solver, ctx.f, ctx.z, ctx.report, ctx.lost = who, solver, f, z, report, report.lost
        return tuple(value.detach() for value in values)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        lost, v = without_lost(ctx.who, ctx.report, ctx.lost, cotangents)

        def adjoint_map(u: State) -> State:
            through = pull_back(ctx.f, ctx.z, tensors_of(u), retain_graph=True)
            return tuple(one + other for one, other in zip(v, through, strict=True))

        with torch.no_grad():
            found = ctx.solver.solve(adjoint_map, v)
        ctx.report.residual, ctx.report.nfe = found.residual.masked_fill(lost, torch.nan), found.nfe
        ctx.report.status = found.status.masked_fill(lost, int(Status.NON_FINITE))
        _warn(ctx.who, ctx.solver, found.status[~lost], found.residual[~lost])
        u = without_useless(ctx.report, found.status, tensors_of(found.z))
        return (
            None,
            None,
            None,
            None,
            *(once(part, one) for part, one in zip(u, ctx.f, strict=True)),
            *(None for _ in v),
        )


def _warn(who: str, solver: FixedPointSolver, status: Tensor, residual: Tensor) -> None:
    warn_of_backward(
        who,
        status != Status.CONVERGED,
        f"ended above tol={solver.tol:g}, {worst_of(residual)} (max_nfe={solver.max_nfe})",
        "raise max_nfe, converge the forward solve further, or train with a Jacobian penalty",
    )
