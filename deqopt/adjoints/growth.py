"""Measures the growth of a gradient on its way back through the evaluations of a solve."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deqopt.adjoints.left_out import report_of, without_lost
from deqopt.adjoints.reporting import warn_of_backward
from deqopt.equilibrium import BackwardReport, Equilibrium
from deqopt.state import State, state_of, tensors_of

# A gradient that became this many times longer says little about the solution. Of 4,200 gradients of random tanh cells,
# unrolled through short and converged solves, none below this limit had an error of more than 52 times the true
# gradient, and all above it had an error larger than the true gradient.
ERRATIC = 20.0
# When the gradient of a loss of x alone first reaches z and mu, a factor up to this is a change of units, not growth.
EXCHANGE = 20.0


class Growth:
    """Watches the cotangents of ``(z, mu, x)`` during a backward pass.

    Their length is ``sqrt(sum |block|^2 |cotangent of block|^2)``: the change of the loss when every block changes by
    its own size. So units do not matter. The growth is the largest length divided by the length at the solution, or at
    the evaluation before it.

    Args:
        who: name of the adjoint, for warnings.
    """

    def __init__(self, who: str) -> None:
        self._who = who
        self._report = BackwardReport()
        self._sizes: tuple[Tensor, Tensor, Tensor]
        self._start: Tensor | None = None
        self._longest: Tensor
        self._open: Tensor
        self._lost: Tensor

    def watched(self, samples: Tensor, z: State, x: Tensor, mu: State) -> tuple[State, Tensor, State]:
        """The same values, watched, for an evaluation of the remaining ``samples``, (b,), of the solve."""
        count = len(tensors_of(z))
        parts = _Passed.apply(self, samples, count, *tensors_of(z), *tensors_of(mu), x)
        return state_of(parts[:count], z), parts[-1], state_of(parts[count:-1], mu)

    def attach(self, equilibrium: Equilibrium) -> Equilibrium:
        """The same values, at which a backward pass begins. Only ``differentiable`` samples get a gradient."""
        self._report, self._lost = report_of(equilibrium), ~equilibrium.differentiable
        z, mu, x = equilibrium.z, equilibrium.mu, equilibrium.x
        self._sizes = _length(tensors_of(z)), _length(tensors_of(mu)), _length((x,))
        objective, *parts = _Begin.apply(self, len(tensors_of(z)), equilibrium.objective, *equilibrium.values)
        return equilibrium.with_values(parts, objective, self._report)

    def begin(self, count: int, *cotangents: Tensor) -> tuple[Tensor, ...]:
        """Called with the cotangents at which a backward pass begins. The first is that of the objective, which is
        counted where it reaches z and x. Returns them, with zeros in the samples that give no gradient."""
        _, (objective, *parts) = without_lost(self._who, self._report, self._lost, cotangents)
        self._start = self._longest = self._lengths(count, *parts)
        self._open = torch.ones_like(self._start, dtype=torch.bool)
        torch.autograd.Variable._execution_engine.queue_callback(self._finish)  # type: ignore[attr-defined]
        return objective, *parts

    def passed(self, samples: Tensor, count: int, *cotangents: Tensor) -> None:
        """Called when a backward pass has gone through an evaluation of these samples."""
        if self._start is None:
            return
        here = torch.zeros_like(self._start).index_copy(0, samples, self._lengths(count, *cotangents, rows=samples))
        first = self._open & (here > 0)
        exchanged = torch.where(self._start > 0, here.clamp_max(EXCHANGE * self._start), here)
        self._start = torch.where(first, torch.maximum(self._start, exchanged), self._start)
        self._open = self._open & ~first
        self._longest = torch.maximum(self._longest, here)

    def _lengths(self, count: int, *cotangents: Tensor, rows: Tensor | None = None) -> Tensor:
        z, mu, x = (size if rows is None else size[rows] for size in self._sizes)
        blocks = cotangents[:count], cotangents[count:-1], cotangents[-1:]
        scaled = [size * _length(block) for size, block in zip((z, mu, x), blocks, strict=True)]
        return torch.stack(scaled).square().sum(0).sqrt()

    def _finish(self) -> None:
        if self._start is None or not len(self._start):
            return
        growth = torch.where(self._start > 0, self._longest / self._start, torch.nan)
        self._report.growth, self._start = growth, None
        warn_of_backward(
            self._who,
            growth > ERRATIC,
            f"made the gradient up to {float(growth.nan_to_num(nan=0.0).max()):.0e} times longer, so the gradient "
            "says little about the solution",
            "use Implicit(), or unroll fewer evaluations",
        )


class _Begin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, growth: Growth, count: int, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.growth, ctx.count = growth, count
        return tuple(value.view_as(value) for value in values)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.growth.begin(ctx.count, *cotangents)


class _Passed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, growth: Growth, samples: Tensor, count: int, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.growth, ctx.samples, ctx.count = growth, samples, count
        return tuple(value.view_as(value) for value in values)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        ctx.growth.passed(ctx.samples, ctx.count, *cotangents)
        return None, None, None, *cotangents


def _length(parts: tuple[Tensor, ...]) -> Tensor:
    """(B,) length of all parts of a sample together, in double precision."""
    lengths = [torch.linalg.vector_norm(part.detach().flatten(1), dim=1, dtype=torch.float64) for part in parts]
    return torch.stack(lengths).square().sum(0).sqrt()
