"""Evaluations and seconds, taken alike of everybody: no competitor's own count is believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from deqopt import JointProblem
from deqopt.clock import now
from deqopt.state import State, state_of, tensors_of


@dataclass(frozen=True)
class ReturnedInput:
    """An input that a competitor returns, and what it had cost until then.

    Attributes:
        label: the budget or the number of steps that it belongs to.
        x: (B, *input).
        evaluations: a sample; NaN where they were not counted.
        seconds: for the whole batch.
    """

    label: int
    x: Tensor
    evaluations: float
    seconds: float


@dataclass
class Stopwatch:
    """Collects the points of one run.

    Counting costs a little time, so runs that are counted are not timed, and the other way round.

    Args:
        device: whose work is waited for before the clock is read.
        counted: count the evaluations of problems that went through :meth:`observe`.
    """

    device: torch.device
    counted: bool
    points: list[ReturnedInput] = field(default_factory=list)
    _passes: float = 0.0
    _started: float = 0.0

    def observe(self, problem: JointProblem) -> JointProblem:
        """The same problem; where evaluations are counted, with a cell that reports its passes.

        An evaluation is one forward and one backward pass of the cell for every sample, so each of the two is a half.
        """
        if not self.counted:
            return problem
        return replace(problem, cell=_Observed(problem.cell, self._passed))

    def start(self) -> None:
        """A run begins, or a new one with another budget."""
        self._passes, self._started = 0.0, now(self.device)

    def mark(self, label: int, x: Tensor) -> None:
        """The run has returned ``x``, or would if it were stopped here."""
        seconds = now(self.device) - self._started
        evaluations = self._passes / (2 * x.shape[0]) if self.counted else float("nan")
        self.points.append(ReturnedInput(label, x.detach().clone(), evaluations, seconds))

    def _passed(self, samples: int) -> None:
        self._passes += samples


@dataclass(frozen=True)
class _Observed:
    cell: Callable[..., State]
    passed: Callable[[int], None]

    def __call__(self, z: State, *rest: Any) -> State:
        samples = tensors_of(z)[0].shape[0]
        self.passed(samples)
        image = self.cell(z, *rest)
        return state_of(_Passing.apply(lambda: self.passed(samples), *tensors_of(image)), image)  # type: ignore[no-untyped-call]


class _Passing(torch.autograd.Function):
    """The identity; says when a gradient comes by."""

    @staticmethod
    def forward(ctx: Any, passed: Callable[[], None], *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.passed = passed
        return tuple(part.view_as(part) for part in parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.passed()
        return None, *gradients
