"""Parametrised weights (weight norms, spectral norms) that are computed once for many evaluations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize


@contextmanager
def cached_weights(module: nn.Module) -> Iterator[None]:
    """Within, every parametrised weight of ``module`` is computed once.

    All of them at the start and with a graph: a weight that ``parametrize.cached()`` first sees under ``no_grad``
    keeps no graph, and its parameters get no gradient from whatever uses it later in the block.
    """
    with parametrize.cached():
        with torch.enable_grad():
            for part in module.modules():
                if parametrize.is_parametrized(part):
                    for name in part.parametrizations:  # type: ignore[union-attr]
                        getattr(part, name)
        yield
