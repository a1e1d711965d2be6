"""What every adjoint does."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from deqopt.equilibrium import Equilibrium
from deqopt.errors import ProblemError
from deqopt.problem import Evaluation, JointProblem
from deqopt.state import State


class Adjoint(ABC):
    """How gradients with respect to theta reach a solution."""

    @property
    def through_the_solve(self) -> bool:
        """Whether autograd records the solve itself. All others attach gradients to its detached solution."""
        return False

    def begin(self, problem: JointProblem) -> JointProblem:
        """The problem as one solve is to see it: what it evaluates, and what :meth:`attach` is called with.

        An adjoint is a setting and remembers nothing; what it must know of a solve, the problem carries.
        """
        return problem

    def evaluate(self, problem: JointProblem, z: State, x: Tensor, mu: State) -> Evaluation:
        """How the solve is to evaluate the problem: detached, unless autograd records it."""
        return problem.evaluate(z, x, mu)

    @abstractmethod
    def attach(self, problem: JointProblem, equilibrium: Equilibrium) -> Equilibrium:
        """The same values, connected to theta. Called with autograd enabled.

        Raises:
            ProblemError: neither cell nor objective reaches anything that requires a gradient.
            NonFiniteError: what cell or objective close over is NaN or infinite for a sample, so that all gradients
                would be NaN. What is handed over as ``data`` may be: such a sample gets no gradient.
        """


def check_reaches_theta(value: Tensor) -> None:
    """Raise ProblemError unless ``value``, computed from constants and theta, carries a gradient."""
    if not value.requires_grad:
        raise ProblemError(
            "nothing to differentiate: neither cell nor objective reaches a parameter that requires a gradient; "
            "call solve() without adjoint, or unfreeze the parameters"
        )


def warn_of_backward(who: str, failed: Tensor, what: str, advice: str) -> None:
    """One warning a backward pass about the samples that ``failed``, (B,), if any did.

    Args:
        who: the adjoint.
        what: happened to them: "ended above tol=1e-3, the worst with ...".
        advice: what to do.
    """
    if bool(failed.any()):
        warnings.warn(describe_backward(who, failed, what, advice), stacklevel=3)


def warn_of_samples(who: str, concerned: Tensor, what: str, advice: str) -> None:
    """One warning about the samples that are ``concerned``, (B,), if any are: the arguments are those of
    :func:`warn_of_backward`, for what is no matter of the backward solve."""
    if bool(concerned.any()):
        count = f"{int(concerned.sum())} of {len(concerned)} samples"
        warnings.warn(f"{who}: {count} {what}: {advice}", stacklevel=4)


def describe_backward(who: str, failed: Tensor, what: str, advice: str) -> str:
    """The sentence of :func:`warn_of_backward`."""
    return f"{who}: the backward solve of {int(failed.sum())} of {len(failed)} samples {what}: {advice}"


def worst_of(residual: Tensor) -> str:
    """The largest of ``residual``, (B,), as a warning names it."""
    known = residual[~residual.isnan()]
    said = [f"the worst with a relative residual of {float(known.max()):.1e}"] if len(known) else []
    if len(known) < len(residual):
        said.append("some with one that is not finite")
    return ", ".join(said)


def once(gradient: Tensor, source: Tensor) -> Tensor:
    """A gradient that was computed without a graph of its own: differentiating it raises, where it could be tried.

    Args:
        source: anything that requires a gradient, so that autograd comes back here.
    """
    return _Once.apply(gradient, source) if torch.is_grad_enabled() else gradient


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, source: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, None]:
        raise ProblemError(
            "this gradient cannot be differentiated again: leave out create_graph=True, or use a plain Unrolled()"
        )
