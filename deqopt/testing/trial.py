"""A solver under examination, and how its results are compared."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deqopt.equilibrium import Equilibrium
from deqopt.errors import ProblemError
from deqopt.memory import Memory
from deqopt.solvers.base import JointSolver
from deqopt.solvers.system import JointSystem
from deqopt.state import Layout, State, state_of, tensors_of
from deqopt.testing.problems import ALL, Case, Family

SHORT = 16
TOL = 1e-6
STEPS = 8
POINT = ("z", "x", "mu", "objective")


@dataclass(frozen=True)
class Trial:
    """A solver, the share of the possible gain that is asked of it, and where it runs."""

    solver: JointSolver
    share: float
    device: torch.device

    def case(self, family: Family, rows: Sequence[int] = ALL, dtype: torch.dtype = torch.float64) -> Case:
        return family.case(rows, dtype, self.device)

    @property
    def short(self) -> JointSolver:
        """With a budget that keeps the examination short, and a tolerance that only a solution meets."""
        budgets = (SHORT * 2**k for k in range(30))
        return next(filter(None, map(self.within, budgets)), self.solver)

    def within(self, budget: int) -> JointSolver | None:
        """With that budget or its own, if that is less; None where it refuses so small a one."""
        try:
            return replace(self.solver, max_nfe=min(budget, self.solver.max_nfe), tol=TOL, atol=0.0)
        except ProblemError:
            return None


@dataclass
class Walk:
    """A solve by hand, without the loop: where it is, (B, width), and what it remembers."""

    solver: JointSolver
    system: JointSystem
    point: Tensor
    memory: Memory

    @classmethod
    def of(cls, trial: Trial, case: Case) -> Walk:
        """From the start of a case with the short budget."""
        system = JointSystem.of(case.problem, case.z0, case.x0, trial.short)
        mu0 = state_of((torch.zeros_like(part) for part in tensors_of(case.z0)), case.z0)
        point = system.pack(case.z0, mu0, case.x0)
        return cls(trial.short, system, point, trial.short.begin(system, *system.split(point)))

    def go(self) -> Tensor:
        """One evaluation and one step; the next point."""
        at = self.system.evaluate(self.point)
        self.point = self.system.join(*self.solver.step(self.system, at, self.memory))
        return self.point


def solve(solver: JointSolver, case: Case, **how: Any) -> Equilibrium:
    return solver.solve(case.problem, case.z0, case.x0, **how)


def rows(state: State) -> Tensor:
    """(B, width)"""
    return Layout.of(state).pack(state, torch.float64)


def apart(first: Tensor, second: Tensor) -> Tensor:
    """(B,) the largest difference of two (B, width) or (B,), relative to their size plus one; infinite for a NaN."""
    first, second = first.double().reshape(len(first), -1), second.double().reshape(len(second), -1)
    off = (first - second).abs() / (1 + second.abs().amax(dim=1, keepdim=True)) if second.numel() else first
    return off.nan_to_num(nan=torch.inf, posinf=torch.inf).amax(1) if off.numel() else off.new_zeros(len(off))


def differences(
    found: Equilibrium, expected: Equilibrium, where: str, pairs: Sequence[tuple[int, int]], tol: float = TOL
) -> Iterator[str]:
    """A sentence for every block in which samples of two results differ.

    Args:
        where: begins the sentence.
        pairs: samples of ``found`` and of ``expected`` that should be the same.
    """
    ours, theirs = [one for one, _ in pairs], [other for _, other in pairs]
    for name in POINT:
        first, second = getattr(found, name), getattr(expected, name)
        if name != "objective":
            first, second = rows(first), rows(second)
        off = apart(first[ours], second[theirs])
        worst = int(off.argmax())
        if not off[worst] <= tol:
            yield f"{where}: {name} of sample {theirs[worst]} differs by {off[worst]:.1e}, expected at most {tol:.0e}"


def same_bits(first: Any, second: Any) -> bool:
    """Whether two states, or tuples of them, have the same values, NaN included."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and bool(((first == second) | (first.isnan() & second.isnan())).all())
    return len(first) == len(second) and all(same_bits(one, two) for one, two in zip(first, second, strict=True))


def is_finite(*states: State) -> bool:
    return all(bool(part.isfinite().all()) for state in states for part in tensors_of(state))


def gradients_of_steps(value: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Through an unrolled solve. That they grow is no matter here: they are asked to be those of the steps taken."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unrolled: the backward solve")
        return torch.autograd.grad(value, inputs)
