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

    Solves ``(d_w F)^T lam = -d_w loss`` by GMRES, one double-backward through f and J a product: about the cost of two
    evaluations. The gradient is that of the optimum; where the forward solve stopped far from it, or the Lagrangian's
    curvature in x is nearly singular there, prefer :class:`Unrolled`, the gradient of what was computed.

    Args:
        tol: of the relative residual ``|(d_w F)^T lam + d_w loss| / |d_w loss|``, every unknown in units of its own
            size. On decoders, 1e-3 left an error of up to 2 % in the gradient to theta, 1e-2 of up to 100 %.
        max_nfe: products a backward pass, at least 5: three of them measure these units.
        restart: how many vectors of the size of (z, mu, x) are kept before GMRES starts again from what it has; less
            than ``max_nfe`` saves memory and may cost many more products.
        on_failure: what to do where ``tol`` is not reached.
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
