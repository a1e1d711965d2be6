"""Known values that are connected to theta by a custom backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deqopt.errors import ProblemError

Pull = Callable[[tuple[Tensor, ...]], Sequence[Tensor | None]]


def connect(values: Sequence[Tensor], outputs: Sequence[Tensor], pull: Pull) -> tuple[Tensor, ...]:
    """The same values, but their gradient goes to ``outputs``, and on to everything that these were computed from.

    The gradient cannot be differentiated again: that raises :class:`deqopt.errors.ProblemError`.

    Args:
        values: constants.
        outputs: tensors that carry gradients.
        pull: function from the cotangents of all values (zeros if there is none) to those of the outputs (None if there
            is none); called without autograd, once for every backward pass that reaches a value.

    Example:
        >>> theta = torch.tensor([2.0], requires_grad=True)
        >>> (root,) = connect([torch.tensor([3.0])], [theta], lambda cotangents: [10 * cotangents[0]])
        >>> root.sum().backward()
        >>> theta.grad
        tensor([10.])
    """
    connected: tuple[Tensor, ...] = _Connected.apply(pull, len(outputs), *outputs, *values)
    return connected


class _Connected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pull: Pull, count: int, *outputs_and_values: Tensor) -> tuple[Tensor, ...]:
        values = outputs_and_values[count:]
        ctx.pull, ctx.like = pull, [(value.shape, value.dtype, value.device) for value in values]
        ctx.save_for_backward(*outputs_and_values[:count])
        ctx.set_materialize_grads(False)
        return tuple(value.detach() for value in values)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        outputs, nothing = ctx.saved_tensors, [None] * len(cotangents)
        if all(one is None for one in cotangents):
            return None, None, *(None for _ in outputs), *nothing
        with torch.no_grad():
            given = [
                torch.zeros(shape, dtype=dtype, device=device) if one is None else one
                for one, (shape, dtype, device) in zip(cotangents, ctx.like, strict=True)
            ]
            pulled = ctx.pull(tuple(given))
        pairs = zip(pulled, outputs, strict=True)
        return None, None, *(None if part is None else final(part, output) for part, output in pairs), *nothing


def final(gradient: Tensor, source: Tensor) -> Tensor:
    """A gradient that was computed without a graph of its own: differentiating it raises, where it could be tried.

    Args:
        source: anything that requires a gradient, so that autograd comes back here.
    """
    return _Final.apply(gradient, source) if torch.is_grad_enabled() else gradient


class _Final(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, source: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, None]:
        raise ProblemError(
            "this gradient cannot be differentiated again: leave out create_graph=True, or use a plain Unrolled()"
        )
