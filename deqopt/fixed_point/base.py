"""What every fixed-point solver shares: its settings, its result, the way into the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deqopt.batch import pick
from deqopt.iteration import LoopSettings, iterate
from deqopt.memory import Memory
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
class Image:
    """``f(z)`` in rows, and the measures that the loop asks for."""

    target: Tensor
    residual: Tensor
    objective: Tensor
    merit: Tensor


@dataclass(frozen=True)
class FixedPointSystem:
    """``z = f(z, data)`` in rows."""

    f: Callable[..., State]
    layout: Layout
    settings: LoopSettings
    data: Any

    def evaluate(self, w: Tensor) -> Image:
        z = self.layout.unpack(w)
        image = self.f(z) if self.data is None else self.f(z, self.data)
        check_same_layout(image, z, "f")
        target = self.layout.pack(image, w.dtype)
        distance = self.settings.norm.of(target - w)
        residual = self.settings.relative(distance, self.settings.norm.of(target))
        return Image(target, residual, torch.zeros_like(residual), merit=distance)

    def pick(self, keep: Tensor) -> FixedPointSystem | None:
        if self.data is None:
            return None
        return FixedPointSystem(self.f, self.layout, self.settings, pick(self.data, keep))


@dataclass(frozen=True)
class FixedPointSolver(LoopSettings, ABC):
    """Settings that all fixed-point solvers have: those of :class:`deqopt.iteration.LoopSettings`."""

    max_nfe: int = 50
    tol: float = 1e-5

    def begin(self, w: Tensor) -> Memory:
        """The empty memory of a solve from the rows ``w``."""
        return Memory(w)

    @abstractmethod
    def step(self, w: Tensor, target: Tensor, memory: Memory) -> Tensor:
        """The next point from ``w`` and ``f(w) = target``. Must not couple rows."""

    def solve(self, f: Callable[..., State], z0: State, data: Any = None) -> FixedPoint:
        """Solve ``z = f(z)`` from ``z0`` for every sample alone. No gradient flows: see :mod:`deqopt.adjoints`.

        Args:
            f: keeps the shapes of z; must not couple samples.
            z0: (B, *state) or a tuple of such.
            data: per-sample data, a tree of tensors with the batch first. With it ``f(z, data)`` is called, and samples
                that have converged are left out of the batch; without it they are only frozen.
        """
        layout = Layout.of(z0)
        w0 = layout.pack(z0, work_dtype(z0)).detach()
        with torch.no_grad():
            outcome = iterate(
                FixedPointSystem(f, layout, self, data),
                lambda _, w, image, memory: self.step(w, image.target, memory),
                self.begin(w0),
                w0,
                self,
            )
        return FixedPoint(layout.unpack(outcome.w), outcome.residual, outcome.status, outcome.nfe)
