"""Evaluations, seconds and memory, taken alike of everybody: no competitor's own count is believed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


def peak_bytes(device: torch.device, work: Callable[[], object]) -> int:
    """The most bytes that tensors made by ``work`` hold at once.

    On CUDA by the allocator's record. On the CPU every storage that an operation returns is followed until it is freed:
    the memory of the process would hide growth behind what the libraries take, and its peak is never lowered again.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _Storages() as storages:
        work()
    return storages.peak


class _Storages(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._follow(value.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size
