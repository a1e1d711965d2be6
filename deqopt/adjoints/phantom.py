"""Cheap approximations of the implicit gradient: a few terms of the Neumann series of its linear system."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from deqopt.adjoints.linearised import Linearised
from deqopt.adjoints.reporting import warn_of_backward, worst_of
from deqopt.adjoints.stationary import StationaryAdjoint
from deqopt.equilibrium import BackwardReport
from deqopt.errors import check_finite
from deqopt.iteration import Status
from deqopt.ranges import at_least, positive, positive_share

# A series diverges if its last term is more than this many times longer than its first. A little growth is allowed.
GROWN = 10.0


@dataclass(frozen=True)
class Phantom(StationaryAdjoint):
    """The gradient of ``steps`` damped steps ``w <- w + damping (T(w) - w)`` from the solution (Geng et al. 2021), with
    ``T(w) = (f, g_z, Proj(x - a g_x))``.

    With ``M = I + damping d_w F`` it uses ``lam = damping (I + M + ... + M^(steps - 1))^T v``, where v is the gradient
    of the loss in w. If M contracts, the error decreases as its spectral radius to the power of ``steps``. A series
    that grows is reported as diverged, with a warning, and gives no gradient.

    Args:
        steps: number of steps, at least 1; costs ``steps - 1`` products.
        damping: damping of each step, in (0, 1]; with small values M may contract where the plain step does not.
        step_size: the step a in ``Proj(x - a g_x)``, in units of x per unit of its gradient; if None, it is fitted to
            the curvature of the Lagrangian by three more products.

    Example, with the problem and the start of :class:`deqopt.JointProblem`'s:
        >>> from deqopt.solvers import JointAnderson
        >>> eq = JointAnderson(tol=1e-5).solve(problem, z0, x0, adjoint=Phantom(steps=200, damping=0.5))
        >>> (gradient,) = torch.autograd.grad(eq.x.sum(), weight)
        >>> bool((gradient + 2.88).abs() < 0.01)
        True
    """

    steps: int = 5
    damping: float = 0.5
    step_size: float | None = None

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)
        positive_share(damping=self.damping)
        if self.step_size is not None:
            positive(step_size=self.step_size)
        check_finite(step_size=self.step_size)

    def step_of_x(self) -> float | None:
        return self.step_size

    def multiplier(self, system: Linearised, cotangent: Tensor, lost: Tensor) -> tuple[Tensor, BackwardReport]:
        """``lam_0 = 0``, ``lam <- lam + damping (v + (d_w F)^T lam)``, ``steps`` times, for the cotangent v.

        The reported residual is ``|v + (d_w F)^T lam| / |v|`` before the last step, with every unknown in units of its
        own size. It is the length of the last term of the series relative to the first term.
        """
        term, lam = cotangent, self.damping * cotangent
        for _ in range(self.steps - 1):
            term = cotangent + system.transposed(lam)
            lam = lam + self.damping * term
        first, last = (torch.linalg.vector_norm(system.scale * part, dim=1) for part in (cotangent, term))
        residual = torch.where(first > 0, last / first, 0)
        status = torch.where(residual <= GROWN, int(Status.OUT_OF_BUDGET), int(Status.DIVERGED))
        warn_of_backward(
            type(self).__name__,
            (status == Status.DIVERGED)[~lost],
            f"is a Neumann series that grows, so these samples give no gradient, {worst_of(residual[~lost])}",
            "lower damping or step_size, train with a Jacobian penalty, or use Implicit",
        )
        return lam, BackwardReport(residual, status, torch.full_like(status, self.steps - 1 + system.nfe))


@dataclass(frozen=True)
class JacobianFree(Phantom):
    """The gradient of one step ``w <- T(w) = (f, g_z, Proj(x - a g_x))`` from the solution (Fung et al. 2022): lam = v.

    It needs no product with the Jacobian. If T contracts enough, it has a positive inner product with the implicit
    gradient. In one step, a change of x does not reach z: so the gradient of a loss of z alone ignores that theta moves
    x.

    Args:
        step_size: the step a of x, in units of x per unit of its gradient; if None, it is fitted to the curvature of
            the Lagrangian by three products.

    Example, with the problem and the start of :class:`deqopt.JointProblem`'s:
        >>> from deqopt.solvers import JointAnderson
        >>> eq = JointAnderson(tol=1e-5).solve(problem, z0, x0, adjoint=JacobianFree())
        >>> torch.autograd.grad(eq.z.sum(), weight)  # z of one more step is w z + x
        (tensor(4.8000),)
    """

    steps: int = field(default=1, init=False, repr=False)
    damping: float = field(default=1.0, init=False, repr=False)
