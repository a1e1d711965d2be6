"""Samples that give no gradient to theta: all adjoints leave them out and report them in the same way."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from deqopt.adjoints.reporting import warn_of_samples
from deqopt.equilibrium import BackwardReport, Equilibrium
from deqopt.iteration import Status
from deqopt.problem import JointProblem
from deqopt.state import tensors_of, zero_where
from deqopt.usable import UsablePoint, finite_rows


def point_of(who: str, problem: JointProblem, equilibrium: Equilibrium) -> UsablePoint:
    """The point where a solve ended, for gradients to theta. Warns of samples whose solve diverged: they give none.

    Args:
        who: name of the adjoint, for warnings.
    """
    point = UsablePoint.of_solution(problem, equilibrium, ~equilibrium.differentiable)
    if point.lost is not None:
        warn_of_diverged(who, equilibrium)
    return point


def warn_of_diverged(who: str, equilibrium: Equilibrium) -> None:
    """Warn of the samples whose solve diverged."""
    warn_of_samples(
        who,
        equilibrium.status == Status.DIVERGED,
        "give no gradient, because their solve diverged",
        "use a smaller step size, or train with a Jacobian penalty so that the cell is contractive",
    )


def report_of(equilibrium: Equilibrium) -> BackwardReport:
    """An empty report, except for the samples that are already known to give no gradient."""
    return BackwardReport(lost=~equilibrium.differentiable)


def without_lost(
    who: str, report: BackwardReport, lost: Tensor, cotangents: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The samples that give no gradient, (B,), and the cotangents of the solution, (B, ...) each, with zeros in these
    samples.

    Args:
        who: name of the adjoint, for warnings.
        report: report in which these samples are noted.
        lost: (B,) samples that were known before to give no gradient. Samples with a cotangent that is not finite are
            added to them.
    """
    broken = ~finite_rows(*cotangents)
    if broken.device.type == "cpu":  # does not wait for an accelerator
        warn_of_samples(
            who,
            broken & ~lost,
            "give no gradient, because the gradient of the loss is NaN or infinite for them",
            "look for a division by zero, a root or a logarithm in the loss",
        )
    _note(report, broken)
    lost = lost | broken
    return lost, tensors_of(zero_where(lost, tuple(cotangents)))


def without_useless(report: BackwardReport, status: Tensor, multipliers: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The result of a backward solve, (B, ...) each, with zeros in the samples for which it is useless.

    Args:
        report: report in which these samples are noted.
        status: (B,) how the backward solve ended.
    """
    useless = ~finite_rows(*multipliers) | (status == Status.DIVERGED) | (status == Status.NON_FINITE)
    _note(report, useless)
    return tensors_of(zero_where(useless, tuple(multipliers)))


def _note(report: BackwardReport, lost: Tensor) -> None:
    report.lost = lost if report.lost is None else report.lost | lost
