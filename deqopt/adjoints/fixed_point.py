"""The implicit gradient of a plain fixed point: to parameters, and to everything else that its map depends on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deqopt.adjoints.linearised import Linearised
from deqopt.adjoints.reporting import warn_of_backward, worst_of
from deqopt.adjoints.stationary import Multiplier, connected_map
from deqopt.equilibrium import BackwardReport
from deqopt.fixed_point import Anderson, FixedPointSolver
from deqopt.iteration import Status
from deqopt.state import State, tensors_of, zero_where


def implicit_fixed_point(
    f: Callable[[State], State], z: State, solver: FixedPointSolver | None = None, lost: Tensor | None = None
) -> tuple[State, BackwardReport]:
    """The values of ``z = f(z)``, with gradients to everything that f depends on: ``d loss = u^T d f`` with

        u = (d_z f)^T u + d_z loss

    (Bai, Kolter, Koltun: Deep equilibrium models, 2019). f may depend on anything that carries a gradient, such as an
    input that was itself optimised. Must be called with autograd enabled. The backward pass warns of samples for which
    the solution of u ends above the tolerance. If you do not need your own solver for u,
    ``solver.solve(f, z0, adjoint=Implicit())`` does the same in one call.

    Args:
        f: the map whose fixed point was solved; must not couple samples.
        z: the fixed point, (B, *state) or a tuple of such tensors, from :meth:`FixedPointSolver.solve`.
        solver: solver of the equation for u; by default Anderson mixing with 50 products and a tolerance of 1e-3.
        lost: (B,) samples that get no gradient.

    Returns:
        z, and a report that the backward pass fills.

    Raises:
        NonFiniteError: f is NaN or infinite at 0 for some of the ``lost`` samples: the values that f closes over would
            make the gradient of all other samples NaN.
    """
    first = tensors_of(z)[0]
    if lost is None:
        lost = torch.zeros(len(first), dtype=torch.bool, device=first.device)
    report, who = BackwardReport(lost=lost), "implicit_fixed_point"
    by = solved_by(who, solver or Anderson(max_nfe=50, tol=1e-3))
    return connected_map(who, f, zero_where(lost, z), z, report, by), report


def solved_by(who: str, solver: FixedPointSolver) -> Multiplier:
    """The multiplier of ``F = f(z) - z`` as the fixed point ``u = (d_z f)^T u + v``. It warns in the name of ``who`` if
    the solver ends above its tolerance."""

    def multiplier(system: Linearised, v: Tensor, lost: Tensor) -> tuple[Tensor, BackwardReport]:
        found = solver.solve(lambda u: v + (u + system.transposed(u)), v)  # type: ignore[operator, arg-type]
        residual = found.residual[~lost]
        warn_of_backward(
            who,
            found.status[~lost] != Status.CONVERGED,
            f"ended above tol={solver.tol:g}, {worst_of(residual)} (max_nfe={solver.max_nfe})",
            "raise max_nfe, converge the forward solve further, or train with a Jacobian penalty",
        )
        return tensors_of(found.z)[0], BackwardReport(found.residual, found.status, found.nfe)

    return multiplier
