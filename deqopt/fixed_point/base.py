"""What every fixed-point solver shares: its settings, its result, the way into the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deqopt.iteration import Outcome, check_budget, iterate, relative_residual
from deqopt.state import Layout, State, check_same_layout, work_dtype


@dataclass(frozen=True)
class FixedPoint:
    """A point with ``z = f(z)`` up to ``residual``.

    Attributes:
        z: shaped like the start.
        residual: (B,) ``|f(z) - z| / |f(z)|``.
        status: (B,) values of :class:`deqopt.Status`.
        nfe: (B,) evaluations of f.
    """

    z: State
    residual: Tensor
    status: Tensor
    nfe: Tensor


@dataclass(frozen=True)
class _Image:
    target: Tensor
    residual: Tensor
    objective: Tensor
    merit: Tensor


@dataclass(frozen=True)
class FixedPointSolver(ABC):
    """Settings that all fixed-point solvers have.

    Args:
        max_nfe: budget in evaluations of f.
        tol: relative residual at which a sample has converged.
    """

    max_nfe: int = 50
    tol: float = 1e-5

    def __post_init__(self) -> None:
        check_budget(self.max_nfe, self.tol)

    @abstractmethod
    def stepper(self, w: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The step ``(w, f(w)) -> next w`` for rows like ``w``, with the memory that it needs."""

    def solve(self, f: Callable[[State], State], z0: State) -> FixedPoint:
        """Solve ``z = f(z)`` from ``z0`` for every sample alone. No gradient flows: see :mod:`deqopt.adjoints`.

        Args:
            f: keeps the shapes of z; must not couple samples.
            z0: (B, *state) or a tuple of such.
        """
        layout = Layout.of(z0)
        w0 = layout.pack(z0, work_dtype(z0)).detach()
        step = self.stepper(w0)

        def evaluate(w: Tensor) -> _Image:
            image = f(layout.unpack(w))
            check_same_layout(image, z0, "f")
            target = layout.pack(image, w.dtype)
            residual = relative_residual(target, w)
            return _Image(target, residual, torch.zeros_like(residual), merit=(target - w).norm(dim=1))

        def next_point(w: Tensor, image: _Image) -> Tensor:
            return step(w, image.target)

        with torch.no_grad():
            outcome: Outcome = iterate(evaluate, next_point, w0, max_nfe=self.max_nfe, tol=self.tol)
        return FixedPoint(layout.unpack(outcome.w), outcome.residual, outcome.status, outcome.nfe)
