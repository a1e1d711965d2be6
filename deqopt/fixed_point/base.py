"""The base class of all fixed-point solvers: settings, result, and the call of the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic

import torch
from torch import Tensor

from deqopt.adjoint import Adjoint
from deqopt.batch import check_samples, pick
from deqopt.equilibrium import FixedPoint
from deqopt.errors import require
from deqopt.iteration import Measured, iterate
from deqopt.loop_settings import LoopSettings
from deqopt.memory import Memory, MemoryT
from deqopt.state import Layout, State, check_same_layout, state_of, tensors_of, work_dtype

# A fixed point counts as zero below this share of the length of the first image: no residual is small relative to 0.
ZERO = 1e-6


@dataclass
class FixedPointSystem:
    """``z = f(z, data)`` in rows. Points are ranked by ``|f(z) - z|``.

    Attributes:
        size: (B,) the length of the first image.
    """

    f: Callable[..., State]
    layout: Layout
    settings: LoopSettings
    data: Any
    size: Tensor | None = None

    def evaluate(self, w: Tensor) -> Measured:
        target, norm = self._image(w), self.settings.norm
        distance, length = norm.of(target - w), norm.of(target)
        if self.size is None:
            self.size = length
        residual = self.settings.relative(distance, torch.maximum(length, ZERO * self.size))
        zero = torch.zeros_like(residual)
        return Measured(w, target, residual, zero, distance, torch.ones_like(zero), length, w[:, :0])

    def confirm(self, at: Measured, claimed: Tensor) -> Measured:
        """The evaluation unchanged: its residual needs no further check."""
        return at

    def pick(self, keep: Tensor) -> FixedPointSystem | None:
        if self.data is None:
            return None
        return replace(self, data=pick(self.data, keep), size=pick(self.size, keep))

    def _image(self, w: Tensor) -> Tensor:
        """``f(z)``. f gets a copy of z, because it may change z in place."""
        rows = self.layout.unpack(w)
        z = state_of((part.clone() for part in tensors_of(rows)), rows)
        image = self.f(z) if self.data is None else self.f(z, self.data)
        check_same_layout(image, z, "f")
        return self.layout.pack(image, w.dtype)


@dataclass(frozen=True)
class FixedPointSolver(LoopSettings, ABC, Generic[MemoryT]):
    """Base class of fixed-point solvers, with the settings of :class:`deqopt.loop_settings.LoopSettings`.

    Example:
        >>> import torch
        >>> from deqopt.fixed_point import Anderson
        >>> found = Anderson().solve(lambda z: torch.cos(z), torch.zeros(3, 2))
        >>> bool((found.z - 0.739085).abs().max() < 1e-3)
        True
    """

    max_nfe: int = 50
    tol: float = 1e-5

    def begin(self, w: Tensor) -> MemoryT:
        """The empty memory of a solve from the rows ``w``."""
        return Memory(w)  # type: ignore[return-value]

    @abstractmethod
    def step(self, at: Measured, memory: MemoryT) -> Tensor:
        """Compute the next point from an evaluation ``at.image = f(at.point)``, in rows. Must not couple rows."""

    def solve(
        self, f: Callable[..., State], z0: State, data: Any = None, *, adjoint: Adjoint | None = None
    ) -> FixedPoint:
        """Solve ``z = f(z)`` from ``z0``, independently for every sample.

        Args:
            f: map that keeps the shapes of z; must not couple samples.
            z0: (B, *state), or a tuple of such tensors.
            data: per-sample data: tensors with the batch first, in tuples, lists, dicts or dataclasses. If given,
                ``f(z, data)`` is called, and converged samples leave the batch; otherwise they are only frozen.
            adjoint: method by which gradients reach everything that f depends on; with None, or under ``no_grad``, the
                result carries no gradient.

        Raises:
            ProblemError: the adjoint is for joint problems only.

        Example:
            >>> from deqopt.adjoints import Implicit
            >>> from deqopt.fixed_point import Anderson
            >>> a = torch.tensor(0.5, requires_grad=True)
            >>> found = Anderson().solve(lambda z: a * z + 1, torch.zeros(1, 1), adjoint=Implicit())
            >>> torch.autograd.grad(found.z.sum(), a)  # z = 1 / (1 - a)
            (tensor(4.),)
        """
        check_samples(data, len(tensors_of(z0)[0]))
        layout = Layout.of(z0)
        w0 = layout.pack(z0, work_dtype(z0)).detach()
        with torch.no_grad():
            system, memory = FixedPointSystem(f, layout, self, data), self.begin(w0)
            outcome = iterate(system, lambda _, at, memory: self.step(at, memory), memory, w0, self)
        z = layout.unpack(outcome.w)
        z = state_of((part.clone(memory_format=torch.contiguous_format) for part in tensors_of(z)), z)
        found = FixedPoint(z, outcome.residual, outcome.status, outcome.nfe)
        if adjoint is None or not torch.is_grad_enabled():
            return found
        require(adjoint, Adjoint, "adjoint")
        return adjoint.attach_fixed_point(f if data is None else lambda z: f(z, data), found)
