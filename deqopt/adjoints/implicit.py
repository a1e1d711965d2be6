"""The implicit gradient of the exact optimum."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from deqopt.adjoints.gmres import gmres
from deqopt.adjoints.linearised import Linearised
from deqopt.adjoints.reporting import describe_backward, warn_of_backward, worst_of
from deqopt.adjoints.stationary import StationaryAdjoint
from deqopt.equilibrium import BackwardReport
from deqopt.errors import BackwardError, check_finite
from deqopt.iteration import Status
from deqopt.ranges import at_least, positive


class OnFailure(Enum):
    """What to do when the backward solve of a sample ends above its tolerance."""

    WARN = "warn"
    """Warn, and go on with the gradient of least residual."""
    RAISE = "raise"
    """Raise :class:`deqopt.errors.BackwardError`."""


@dataclass(frozen=True)
class Implicit(StationaryAdjoint):
    """Implicit differentiation of the whole stationary system: exact, for any outer loss of z, x and mu.

    Solves ``(d_w F)^T lam = -d_w loss`` by GMRES. Each product is one double-backward through f and J, which costs
    about two evaluations. The result is the gradient of the optimum. If the forward solve stopped far from the optimum,
    or the Lagrangian's curvature in x is nearly singular there, prefer :class:`Unrolled`, the gradient of the computed
    iterates.

    Args:
        tol: tolerance of the relative residual ``|(d_w F)^T lam + d_w loss| / |d_w loss|``, with every unknown in units
            of its own size. On decoders, 1e-3 left an error of up to 2 % in the gradient to theta, and 1e-2 an error of
            up to 100 %.
        max_nfe: largest number of products per backward pass, at least 5: three of them measure these units.
        restart: number of vectors of the size of (z, mu, x) that are kept before GMRES restarts from its current
            solution; a value below ``max_nfe`` saves memory and may cost many more products.
        on_failure: action if ``tol`` is not reached.

    Example, with the problem and the start of :class:`deqopt.JointProblem`'s:
        >>> from deqopt.solvers import JointAnderson
        >>> eq = JointAnderson(tol=1e-5).solve(problem, z0, x0, adjoint=Implicit())
        >>> torch.autograd.grad(eq.x.sum(), weight)  # x* = (1 - w) / (1 + (1 - w)^2)
        (tensor(-2.8800),)
    """

    tol: float = 1e-3
    max_nfe: int = 200
    restart: int = 200
    on_failure: OnFailure = OnFailure.WARN

    def __post_init__(self) -> None:
        positive(tol=self.tol)
        check_finite(tol=self.tol)
        at_least(5, max_nfe=self.max_nfe)
        at_least(1, restart=self.restart)

    def multiplier(self, system: Linearised, cotangent: Tensor, lost: Tensor) -> tuple[Tensor, BackwardReport]:
        found = gmres(
            lambda rows: system.scale * system.transposed(rows / system.scale),
            -system.scale * cotangent,
            tol=self.tol,
            max_nfe=self.max_nfe - system.nfe,
            restart=self.restart,
        )
        status = torch.where(found.residual <= self.tol, int(Status.CONVERGED), int(Status.OUT_OF_BUDGET))
        status = status.masked_fill(found.residual.isnan(), int(Status.NON_FINITE))
        self._check(found.residual[~lost])
        return found.u / system.scale, BackwardReport(found.residual, status, found.nfe + system.nfe)

    def _check(self, residual: Tensor) -> None:
        failed = ~(residual <= self.tol)
        said = (
            type(self).__name__,
            failed,
            f"ended above tol={self.tol:g}, {worst_of(residual)} (max_nfe={self.max_nfe})",
            "raise max_nfe, converge the forward solve further, train with a Jacobian penalty, or use Phantom or "
            "Unrolled",
        )
        if self.on_failure is OnFailure.RAISE and bool(failed.any()):
            raise BackwardError(describe_backward(*said))
        warn_of_backward(*said)
