"""Values of a solution that an adjoint holds fixed: a loss of them is a mistake that would pass unnoticed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deqopt.equilibrium import Equilibrium
from deqopt.state import state_of, tensors_of


def hold(equilibrium: Equilibrium, names: Sequence[str], who: str) -> Equilibrium:
    """The same values; a backward pass that comes to those named, z, x or mu, stops there with a warning.

    Args:
        equilibrium: whose objective is attached to theta.
        who: the adjoint that carries no gradient to them.
    """
    held = [getattr(equilibrium, name) for name in names]
    parts = [part for state in held for part in tensors_of(state)]
    owners = [name for name, state in zip(names, held, strict=True) for _ in tensors_of(state)]
    connected = iter(_Held.apply(equilibrium.objective, who, owners, *parts))
    found: dict[str, Any] = {
        name: state_of([next(connected) for _ in tensors_of(state)], state)
        for name, state in zip(names, held, strict=True)
    }
    return replace(equilibrium, **found, held=frozenset(names))


class _Held(torch.autograd.Function):
    """All held values in one node on the way to theta, so that every backward pass comes here, and once."""

    @staticmethod
    def forward(ctx: Any, objective: Tensor, who: str, owners: list[str], *values: Tensor) -> tuple[Tensor, ...]:
        ctx.who, ctx.owners = who, owners
        ctx.set_materialize_grads(False)
        return tuple(value.detach() for value in values)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[None, ...]:
        asked = [
            f"eq.{name}"
            for name, cotangent in zip(ctx.owners, cotangents, strict=True)
            if cotangent is not None and bool(cotangent.any())
        ]
        if asked:
            names = " and ".join(dict.fromkeys(asked))
            warnings.warn(
                f"the loss depends on {names}, to which {ctx.who} carries no gradient, so that the cell learns nothing "
                "from it: use Implicit() or Unrolled() (--adjoint), or .detach() where that is meant",
                stacklevel=2,
            )
        return (None, None, None, *(None for _ in cotangents))
