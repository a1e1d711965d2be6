"""Finds NaN and infinite values, which must not be written into a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

from lightning.pytorch import Trainer
from torch import Tensor


def first_not_finite(trainer: Trainer) -> str | None:
    """The name of the first weight, buffer or optimiser value with which training cannot go on; None if all are valid.

    Weights and values of optimisers must be finite. Buffers may be infinite, for example a bound, but not NaN.
    """
    module = trainer.lightning_module
    weights = {name for name, _ in module.named_parameters()}
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor) and bool((~value.isfinite() if name in weights else value.isnan()).any()):
            return f"the weights {name}" if name in weights else name
    return next((name for name, value in _optimiser_values(trainer) if not value.isfinite().all()), None)


def _optimiser_values(trainer: Trainer) -> Iterator[tuple[str, Tensor]]:
    for optimizer in trainer.optimizers:
        for state in optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    yield f"the {name} of the optimiser {type(optimizer).__name__}", value
