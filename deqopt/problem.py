"""The joint problem: optimise the input of an equilibrium network while solving for its equilibrium.

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
    """The result of one evaluation: one forward pass of f and J, and one vector-Jacobian product.

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
    """``min_x J(z, x)`` subject to ``z = f(z, x)`` and ``x in X``, an independent problem for every sample.

    Args:
        cell: the function f, ``(z, x) -> z``; must keep the shapes of z.
        objective: the function J, ``(z, x) -> (B,)``: one value per sample, summed over features.
        feasible: the set X that the input must stay in; by default the whole space.
        data: per-sample data (targets, images): a tensor with the batch first, or a tuple, list, dict or dataclass of
            such tensors. If given, it is passed to ``cell(z, x, data)`` and ``objective(z, x, data)``, and finished
            samples leave the batch. Values that all samples share belong into the functions themselves.

    theta stands for all parameters that ``cell`` and ``objective`` use. Neither function may couple the samples of a
    batch (no BatchNorm).

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> problem = JointProblem(
        ...     cell=lambda z, x: weight * z + x,
        ...     objective=lambda z, x: (z - 1).square().sum(1) + x.square().sum(1),
        ... )
        >>> z0, x0 = torch.zeros(2, 3), torch.zeros(2, 3)
        >>> problem.evaluate(z0, x0, mu=torch.ones(2, 3)).objective
        tensor([3., 3.])
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
        """The value that the user's ``cell`` or ``objective`` returns.

        Raises:
            ProblemError: ``check`` rejects the value, or the call fails for a known reason.
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
        """``J + <mu, f>`` per sample, then f and J themselves; differentiable in everything that f and J depend on.

        The term ``<mu, z>`` is left out: it does not depend on theta, and without it the gradient in z is the
        right-hand side of the multiplier equation.
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
        """Like :meth:`evaluate`, but differentiable in z, x, mu and everything that cell and objective depend on."""
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
                "autograd finds that neither cell nor objective depends on z or x: look for detach() or no_grad in them"
            )
        cotangents = (torch.ones_like(objective), *tensors_of(mu))
        *g_z, g_x = pull_back(outputs, (*tensors_of(z), x), cotangents, create_graph=create_graph)
        return f, objective, state_of(g_z, z), g_x

    def pick(self, keep: Tensor, dim: int) -> JointProblem | None:
        """The problem for the samples where ``keep``, (B,), is true, for an x with ``dim`` dimensions.

        None where there is no such problem: without ``data``, the functions may contain values of the whole batch.
        """
        feasible = self.feasible.pick(keep, dim)
        if self.data is None or feasible is None:
            return None
        return replace(self, feasible=feasible, data=pick(self.data, keep))

    def check(self, z: State, x: Tensor) -> None:
        """Raise ProblemError, naming the argument, if types, batch sizes or devices of the start do not fit."""
        parts = tensors_of(z) if isinstance(z, (Tensor, tuple, list)) else ()
        if not parts or any(not isinstance(part, Tensor) or not part.is_floating_point() for part in (*parts, x)):
            raise ProblemError("z0 must be a floating-point tensor or a tuple of them, and x0 a floating-point tensor")
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
    """The vector-Jacobian product, zero for inputs on which no output depends. Scalar outputs need no cotangents."""
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
    """The same values as separate tensors, so that the derivative in one of them holds the others fixed."""
    return state_of(
        (part.view_as(part) if part.requires_grad else part.detach().requires_grad_() for part in tensors_of(state)),
        state,
    )


def _check_objective(objective: object, x: Tensor) -> None:
    if not isinstance(objective, Tensor) or objective.shape != x.shape[:1]:
        got = f"a tensor {tuple(objective.shape)}" if isinstance(objective, Tensor) else type(objective).__name__
        raise ProblemError(
            f"objective must return one value per sample, shape ({x.shape[0]},), summed over features; got {got}"
        )
