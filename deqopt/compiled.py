"""A cell that runs compiled while a joint problem is solved, and without compilation everywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_map

from deqopt.errors import ProblemError


class CompiledCell:
    """Compiles ``cell`` for the solve loop, which differentiates in z and x but never in the weights.

    Compiled code cannot be differentiated twice, which the Jacobian penalty needs, and it would compute the gradients
    of all weights in every evaluation. So the weights are constants of the compiled cell, which are set again in every
    :meth:`active` block. Computations with gradients to the weights use the cell without compilation, outside the
    block.
    """

    def __init__(self, cell: nn.Module) -> None:
        self._cell = cell
        self._names, plain = _plain_copy(cell)
        self._plain = plain
        self._call = torch.compile(lambda weights, *call: functional_call(plain, weights, *call))

    @classmethod
    def of(cls, task: nn.Module) -> CompiledCell:
        """The cell of a task.

        Raises:
            ProblemError: the task has no module named ``cell``.
        """
        cell = getattr(task, "cell", None)
        if not isinstance(cell, nn.Module):
            raise ProblemError(
                f"compile needs a module named 'cell' in the task, and {type(task).__name__} has none: "
                "give the module this name, or leave compile off"
            )
        return cls(cell)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the block, the cell runs compiled with the weights that it has on entry, which get no gradient."""
        weights = {name: self._value(name) for name in self._names}
        self._plain.train(self._cell.training)
        # Contiguous, because other strides would be compiled anew: solvers hand over parts of larger matrices.
        self._cell.forward = lambda *args, **kwargs: self._call(weights, *tree_map(_contiguous, (args, kwargs)))
        try:
            yield
        finally:
            del self._cell.forward

    def _value(self, name: str) -> Tensor:
        owner, _, tensor = name.rpartition(".")
        value: Any = getattr(self._cell.get_submodule(owner), tensor)
        return value.detach()


def _contiguous(argument: Any) -> Any:
    return argument.contiguous() if isinstance(argument, Tensor) else argument


def _plain_copy(cell: nn.Module) -> tuple[list[str], nn.Module]:
    """The names of the weights and buffers of a cell whose parametrizations are worked in, and that cell, empty."""
    plain = deepcopy(cell)
    for module in plain.modules():
        if parametrize.is_parametrized(module):
            weights = {name: getattr(module, name) for name in module.parametrizations}  # type: ignore[union-attr]
            # Not parametrize.remove_parametrizations: it takes the weights from the class, which the copy shares.
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, weight in weights.items():
                module.register_parameter(name, nn.Parameter(weight))
    # A module that is used twice is named once. Of tied weights, which are tied no longer on meta, each has its name.
    names = [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in plain.named_modules()
        for named in (module.named_parameters, module.named_buffers)
        for name, _ in named(recurse=False, remove_duplicate=False)
    ]
    return names, plain.to("meta")
