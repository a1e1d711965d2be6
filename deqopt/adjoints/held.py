"""Values of a solution that an adjoint holds fixed: warns of losses that depend on them, an easy mistake."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from deqopt.connection import connect
from deqopt.equilibrium import Equilibrium
from deqopt.state import state_of, tensors_of


def hold(equilibrium: Equilibrium, names: Sequence[str], who: str) -> Equilibrium:
    """The same equilibrium, but a backward pass that reaches the named values stops there with a warning.

    Args:
        equilibrium: solution whose objective carries a gradient to theta.
        names: the values that are held fixed, of z, x and mu.
        who: name of the adjoint that carries no gradient to them.
    """
    held = [getattr(equilibrium, name) for name in names]
    parts = [part for state in held for part in tensors_of(state)]
    owners = [name for name, state in zip(names, held, strict=True) for _ in tensors_of(state)]

    def pull(cotangents: tuple[Tensor, ...]) -> list[None]:
        asked = [f"eq.{name}" for name, one in zip(owners, cotangents, strict=True) if bool(one.any())]
        if asked:
            names = " and ".join(dict.fromkeys(asked))
            warnings.warn(
                f"the loss depends on {names}, to which {who} carries no gradient, so that the cell learns nothing "
                "from it: use Implicit() or Unrolled() (--adjoint), or .detach() if this is intended",
                stacklevel=2,
            )
        return [None]

    connected = iter(connect(parts, [equilibrium.objective], pull))  # in one, so that a backward pass comes here once
    found: dict[str, Any] = {
        name: state_of([next(connected) for _ in tensors_of(state)], state)
        for name, state in zip(names, held, strict=True)
    }
    return replace(equilibrium, **found, held=frozenset(names))
