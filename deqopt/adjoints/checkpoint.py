"""Evaluations of which only the inputs are kept, and which run again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from deqopt.connection import final
from deqopt.problem import Evaluation, JointProblem, pull_back
from deqopt.state import State, leaf, state_of, tensors_of


def checkpointed(problem: JointProblem, z: State, x: Tensor, mu: State) -> Evaluation:
    """:meth:`JointProblem.evaluate_with_graph`, but autograd keeps only ``z``, ``x`` and ``mu``.

    ``torch.utils.checkpoint`` does not work here: its second run must save the same tensors as the first, and it does
    not if weights come from ``parametrize.cached()``. So theta, the leaves that autograd reaches, becomes an input.
    """
    fixed = replace(problem, data=tree_map(_detached, problem.data))
    with torch.enable_grad():
        own = leaf(z), leaf(mu), x.detach().requires_grad_()
        value, f, objective = fixed.lagrangian(own[0], own[2], own[1])
        known = {id(part) for part in (*tensors_of(own[0]), *tensors_of(own[1]), own[2], *_learned(fixed.data))}
        theta = [one for one in leaves_of_graph(value) if id(one) not in known]
        *g_z, g_x = pull_back([value.sum()], (*tensors_of(own[0]), own[2]))
    outputs = [*(part.detach() for part in tensors_of(f)), *g_z, objective.detach().to(x.dtype), g_x]
    inputs = (*tensors_of(z), *tensors_of(mu), x, *_learned(problem.data), *theta)
    *images, objective, g_x = _Recomputed.apply(problem, isinstance(z, Tensor), outputs, *inputs)
    count = len(images) // 2
    return Evaluation(state_of(images[:count], z), objective, state_of(images[count:], z), g_x)


class _Recomputed(torch.autograd.Function):
    """Returns known outputs; the backward pass evaluates again with a graph, and differentiates this evaluation."""

    @staticmethod
    def forward(
        ctx: Any, problem: JointProblem, single: bool, outputs: Sequence[Tensor], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        kind = inputs[0].device.type
        ctx.autocast = {"device_type": kind, "dtype": torch.get_autocast_dtype(kind)}
        ctx.autocast["enabled"] = torch.is_autocast_enabled(kind)
        ctx.problem, ctx.single, ctx.states = problem, single, (len(outputs) - 2) // 2
        ctx.save_for_backward(*inputs)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        count = ctx.states
        theta_starts = 2 * count + 1 + len(_learned(ctx.problem.data))
        inputs = [*map(_again, ctx.saved_tensors[:theta_starts]), *ctx.saved_tensors[theta_starts:]]
        z, mu, x = tuple(inputs[:count]), tuple(inputs[count : 2 * count]), inputs[2 * count]
        data = iter(inputs[2 * count + 1 :])
        fixed = replace(
            ctx.problem, data=tree_map(lambda part: next(data) if _is_learned(part) else part, ctx.problem.data)
        )
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            found = fixed.evaluate_with_graph(*((z[0], x, mu[0]) if ctx.single else (z, x, mu)))
        outputs = [*tensors_of(found.f), *tensors_of(found.g_z), found.objective, found.g_x]
        with without_hooks(ctx.saved_tensors[theta_starts:]):
            gradients = pull_back(outputs, inputs, cotangents, retain_graph=True)
        return None, None, None, *(final(one, outputs[0]) for one in gradients)


@contextmanager
def without_hooks(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Within this context, gradients of ``leaves`` are computed without their tensor hooks. The hooks run on the sum
    over all evaluations, and must not run on each term before."""
    hooks = [(one, dict(one._backward_hooks)) for one in leaves if one._backward_hooks]
    for leaf_with_hooks, _ in hooks:
        leaf_with_hooks._backward_hooks.clear()  # type: ignore[union-attr]
    try:
        yield
    finally:
        for leaf_with_hooks, own in hooks:
            leaf_with_hooks._backward_hooks.update(own)  # type: ignore[union-attr]


def leaves_of_graph(value: Tensor) -> list[Tensor]:
    """The leaves that a backward pass from ``value`` would reach."""
    found: list[Tensor] = []
    waiting = [] if value.grad_fn is None else [value.grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            found.append(node.variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return found


def _learned(data: Any) -> list[Tensor]:
    """The tensors of per-sample data that carry a gradient."""
    return [part for part in tree_leaves(data) if _is_learned(part)]


def _is_learned(part: object) -> bool:
    return isinstance(part, Tensor) and part.requires_grad


def _detached(part: Any) -> Any:
    return _again(part) if _is_learned(part) else part


def _again(part: Tensor) -> Tensor:
    return part.detach().requires_grad_()
