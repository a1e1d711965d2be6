"""The joint problem: find the input of an equilibrium network while its equilibrium is being found.

    min_x  J(z, x; y)     subject to   z = f_theta(z, x),   x in X

Lagrangian ``L(z, x, mu) = J(z, x) + <mu, f(z, x) - z>``, all per sample; it is stationary where

    z  = f(z, x)                             equilibrium
    mu = d_z J + (d_z f)^T mu                multiplier
    x  = Proj_X(x - a (d_x J + (d_x f)^T mu))  input

(Gurumurthy, Bai, Manchester, Kolter: Joint inference and input optimization in equilibrium networks, 2021.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from deqopt.batch import check_samples, pick
from deqopt.diagnosis import explain
from deqopt.errors import ProblemError, require
from deqopt.feasible import Everywhere, FeasibleSet
from deqopt.state import State, check_same_layout, detach, leaf, state_of, tensors_of


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation yields: one forward of f and J and one vector-Jacobian product.

    Attributes:
        f: ``f(z, x)``, shaped like z.
        objective: ``J(z, x)``, (B,).
        g_z: ``d_z J + (d_z f)^T mu``, shaped like z: the right-hand side of the multiplier equation.
        g_x: ``d_x J + (d_x f)^T mu``, shaped like x: the gradient of the Lagrangian in x.
    """

    f: State
    objective: Tensor
    g_z: State
    g_x: Tensor


@dataclass(frozen=True)
class JointProblem:
    """``min_x J(z, x)`` subject to ``z = f(z, x)`` and ``x in X``, one independent problem a sample.

    Args:
        cell: f, ``(z, x) -> z``; keeps the shapes of z.
        objective: J, ``(z, x) -> (B,)``: one value a sample, summed over features.
        feasible: X, the set that the input may not leave; by default everywhere.
        data: per-sample data (targets, images): a tensor with the batch first, or a tuple, list, dict or dataclass of
            such. Where it is given, ``cell(z, x, data)`` and ``objective(z, x, data)`` are called with it, and samples
            that are finished leave the batch. What all samples share belongs into the functions.

    theta is whatever ``cell`` and ``objective`` reach. Neither may couple the samples of a batch (no BatchNorm).
    """

    cell: Callable[..., State]
    objective: Callable[..., Tensor]
    feasible: FeasibleSet = field(default_factory=Everywhere)
    data: Any = None
    recorded: ClassVar[bool] = False
    """Whether autograd records every evaluation of a solve."""

    def __post_init__(self) -> None:
        require(self.feasible, FeasibleSet, "feasible")
        for name in ("cell", "objective"):
            if not callable(getattr(self, name)) or isinstance(getattr(self, name), type):
                raise ProblemError(f"{name} must be a function or a module, got {getattr(self, name)!r}")
        if isinstance(self.data, type):
            raise ProblemError(f"data is the class {self.data.__name__} itself: give tensors, in a tuple, list or dict")

    def f(self, z: State, x: Tensor) -> State:
        """``f(z, x)``."""
        return self._called("cell", z, x, lambda image: check_same_layout(image, z, "cell"))

    def J(self, z: State, x: Tensor) -> Tensor:
        """``J(z, x)``, (B,)."""
        return self._called("objective", z, x, lambda objective: _check_objective(objective, x))

    def _called(self, name: str, z: State, x: Tensor, check: Callable[[Any], None]) -> Any:
        """What the user's ``cell`` or ``objective`` returns.

        Raises:
            ProblemError: it is not what ``check`` lets pass, or the call fails and it is known why.
        """
        function = getattr(self, name)
        try:
            returned = function(z, x) if self.data is None else function(z, x, self.data)
            check(returned)
        except Exception as error:
            reason = explain(error, function, name, (z, x, self.data), check)
            if reason is None:
                raise
            raise ProblemError(reason) from error
        return returned

    def lagrangian(self, z: State, x: Tensor, mu: State) -> tuple[Tensor, State, Tensor]:
        """``J + <mu, f>`` a sample, and the f and J that it is made of; differentiable in all that they reach.

        ``<mu, z>`` is left out: it does not depend on theta, and leaving it out turns the gradient in z into
        the right-hand side of the multiplier equation.
        """
        f = self.f(z, x)
        objective = self.J(z, x)
        value = objective
        for mu_part, f_part in zip(tensors_of(mu), tensors_of(f), strict=True):
            value = value + (mu_part * f_part.to(mu_part.dtype)).flatten(1).sum(1)
        return value, f, objective

    def evaluate(self, z: State, x: Tensor, mu: State) -> Evaluation:
        """All quantities of the stationary system at ``(z, x, mu)``, detached. Works under ``no_grad``."""
        with torch.enable_grad():
            f, objective, g_z, g_x = self._evaluated(leaf(z), x.detach().requires_grad_(), mu)
        return Evaluation(detach(f), objective.detach().to(x.dtype), g_z, g_x)

    def evaluate_with_graph(self, z: State, x: Tensor, mu: State) -> Evaluation:
        """The same, differentiable once more: in z, x, mu and all that cell and objective reach."""
        with torch.enable_grad():
            f, objective, g_z, g_x = self._evaluated(fork(z), tensors_of(fork(x))[0], mu, create_graph=True)
        return Evaluation(f, objective.to(x.dtype), g_z, g_x)

    def _evaluated(
        self, z: State, x: Tensor, mu: State, create_graph: bool = False
    ) -> tuple[State, Tensor, State, Tensor]:
        f, objective = self.f(z, x), self.J(z, x)
        outputs = (objective, *tensors_of(f))
        if not any(output.requires_grad for output in outputs):
            raise ProblemError(
                "neither cell nor objective depends on z or x as far as autograd sees: "
                "look for detach() or no_grad in them"
            )
        cotangents = (torch.ones_like(objective), *tensors_of(mu))
        *g_z, g_x = pull_back(outputs, (*tensors_of(z), x), cotangents, create_graph=create_graph)
        return f, objective, state_of(g_z, z), g_x

    def pick(self, keep: Tensor, dim: int) -> JointProblem | None:
        """The problem of the samples where ``keep``, (B,), is true, for an x with ``dim`` dimensions.

        None where it cannot be had: without ``data`` the closures may hold a whole batch.
        """
        feasible = self.feasible.pick(keep, dim)
        if self.data is None or feasible is None:
            return None
        return replace(self, feasible=feasible, data=pick(self.data, keep))

    def check(self, z: State, x: Tensor) -> None:
        """Raise ProblemError, naming the argument, where the start does not fit: types, batch sizes, devices."""
        parts = tensors_of(z) if isinstance(z, (Tensor, tuple, list)) else ()
        if not parts or any(not isinstance(part, Tensor) or not part.is_floating_point() for part in (*parts, x)):
            raise ProblemError("z0 must be a floating-point tensor or a tuple of such, and x0 a floating-point tensor")
        if any(part.dim() < 2 for part in (*parts, x)):
            raise ProblemError(
                "z0 and x0 must have the batch dimension first and at least one more, (B, ...): "
                f"z0 has shape {', '.join(str(tuple(part.shape)) for part in parts)}, x0 {tuple(x.shape)}"
            )
        for part in parts:
            if part.shape[0] != x.shape[0]:
                raise ProblemError(
                    f"z0 and x0 must have the same batch size: z0 has {part.shape[0]} samples, x0 has {x.shape[0]}"
                )
        if any(part.device != x.device for part in parts):
            raise ProblemError(f"z0 and x0 must be on one device: z0 is on {parts[0].device}, x0 on {x.device}")
        check_samples(self.data, x.shape[0])


def pull_back(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor] | None = None,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """The vector-Jacobian product, zero where no output reaches an input. Scalar outputs need no cotangents."""
    reached = [i for i, output in enumerate(outputs) if output.requires_grad]
    if not reached:
        return tuple(torch.zeros_like(part) for part in inputs)
    return torch.autograd.grad(
        [outputs[i] for i in reached],
        inputs,
        None if cotangents is None else [cotangents[i].to(outputs[i].dtype) for i in reached],
        retain_graph=retain_graph or create_graph,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )


def fork(state: State) -> State:
    """The same values as tensors that nothing else was made of, so that a derivative in one holds the others fixed."""
    return state_of(
        (part.view_as(part) if part.requires_grad else part.detach().requires_grad_() for part in tensors_of(state)),
        state,
    )


def _check_objective(objective: object, x: Tensor) -> None:
    if not isinstance(objective, Tensor) or objective.shape != x.shape[:1]:
        got = f"a tensor {tuple(objective.shape)}" if isinstance(objective, Tensor) else type(objective).__name__
        raise ProblemError(
            f"objective must return one value a sample, shape ({x.shape[0]},), summed over features; it returned {got}"
        )
