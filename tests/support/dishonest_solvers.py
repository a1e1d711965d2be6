"""Mutants whose steps are sane, and whose results are not what they say, or cost more than they say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from deqopt import Equilibrium, JointProblem
from sane_solver import Descent


@dataclass(frozen=True)
class Lenient(Descent):
    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        return super().solve(problem, z0, x0 if x0.is_floating_point() else x0.float(), **how)


@dataclass(frozen=True)
class Flat(Descent):
    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        found = super().solve(problem, z0, x0, **how)
        return replace(found, x=found.x.flatten(1), nfe=found.nfe.float().mean())


@dataclass(frozen=True)
class TwiceAsLong(Descent):
    """Goes on from where it ended."""

    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        first = super().solve(problem, z0, x0, **how)
        second = super().solve(problem, first.z, first.x, **{**how, "mu0": first.mu})
        return replace(second, nfe=first.nfe + second.nfe)


@dataclass(frozen=True)
class HalfTheCost(Descent):
    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        found = super().solve(problem, z0, x0, **how)
        return replace(found, nfe=(found.nfe + 1) // 2)


@dataclass(frozen=True)
class Inflated(Descent):
    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        return replace(super().solve(problem, z0, x0, **how), nfe=torch.full((len(x0),), self.max_nfe))


@dataclass(frozen=True)
class Halves(Descent):
    """Returns inputs in the precision of the autocast around it."""

    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        found = super().solve(problem, z0, x0, **how)
        return replace(found, x=found.x.bfloat16()) if torch.is_autocast_enabled(x0.device.type) else found


@dataclass(frozen=True)
class Flatters(Descent):
    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        found = super().solve(problem, z0, x0, **how)
        return replace(found, residual=found.residual / 100)


@dataclass(frozen=True)
class AlwaysConverged(Descent):
    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        found = super().solve(problem, z0, x0, **how)
        return replace(found, status=torch.zeros_like(found.status))


@dataclass(frozen=True)
class Untraced(Descent):
    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, record: bool = False, **how: Any) -> Equilibrium:
        return super().solve(problem, z0, x0, **how)


@dataclass(frozen=True)
class TracedLonger(Descent):
    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, record: bool = False, **how: Any) -> Equilibrium:
        solver = Descent(max_nfe=self.max_nfe + record, tol=self.tol)
        return solver.solve(problem, z0, x0, record=record, **how)


@dataclass(frozen=True)
class Jitters(Descent):
    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        return super().solve(problem, z0, problem.feasible.project(x0 + 1e-3), **how)


@dataclass(frozen=True)
class Remembers(Descent):
    """Starts where the last solve ended."""

    last: ClassVar[dict[torch.Size, Tensor]] = {}

    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        found = super().solve(problem, z0, self.last.get(x0.shape, x0), **how)
        self.last[x0.shape] = found.x.detach()
        return found


@dataclass(frozen=True)
class WritesIntoTheStart(Descent):
    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        x0.detach().mul_(0.5).add_(1e-3)
        return super().solve(problem, z0, x0, **how)


@dataclass(frozen=True)
class LeavesGradients(Descent):
    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        with torch.enable_grad():
            problem.J(z0, x0.requires_grad_()).sum().backward()
        return super().solve(problem, z0, x0, **how)


@dataclass(frozen=True)
class Polishes(Descent):
    """A last gradient step, by autograd that somebody else has to enable."""

    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        found = super().solve(problem, z0, x0, **how)
        x = found.x.detach().requires_grad_()
        torch.autograd.grad(problem.J(found.z, x).sum(), x)
        return found


@dataclass(frozen=True)
class DropsTheAdjoint(Descent):
    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, adjoint: Any = None, **how: Any) -> Equilibrium:
        return super().solve(problem, z0, x0, **how)


@dataclass(frozen=True)
class ReturnsTheStart(Descent):
    """Where J is lower at the start."""

    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        found, first = super().solve(problem, z0, x0, **how), problem.J(z0, x0).detach()
        better = first < found.objective
        objective = torch.where(better, first, found.objective)
        return replace(found, x=torch.where(better[:, None], x0, found.x), objective=objective)


@dataclass(frozen=True)
class Promises(Descent):
    """Says what it hopes for."""

    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        found = super().solve(problem, z0, x0, **how)
        assert found.state_lag is not None
        return replace(found, objective=0.5 * found.objective, state_lag=0 * found.state_lag)


@dataclass(frozen=True)
class Overruns(Descent):
    """Leaves its solution when it has time left."""

    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        found = super().solve(problem, z0, x0, **how)
        return replace(found, x=problem.feasible.project(found.x - 0.5)) if self.max_nfe > 100 else found


@dataclass(frozen=True)
class ConvergesInUnits(Descent):
    """Takes a small objective for a solution."""

    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        found = super().solve(problem, z0, x0, **how)
        return replace(found, status=found.status.masked_fill(found.objective < 1e-6, 0))
