"""The loss of a batch, which a training step differentiates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from deqopt.equilibrium import Equilibrium


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a batch, and its parts.

    Samples are left out if their data, start or loss is NaN or infinite, or if their solve diverged.

    Attributes:
        total: the scalar to differentiate: ``mean`` plus the penalties times their weights.
        mean: mean loss of the remaining samples, a scalar; 0 if no sample remains.
        batch: the remaining samples; None if all data is NaN or infinite.
        equilibrium: the solutions of the remaining samples.
        solved: the solutions of all samples whose data is finite. A backward pass fills ``solved.backward``.
        penalties: the scalars of the regularizers by name, without their weights.
    """

    total: Tensor
    mean: Tensor
    batch: Any = None
    equilibrium: Equilibrium | None = None
    solved: Equilibrium | None = None
    penalties: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """The number of samples that are not left out."""
        return 0 if self.equilibrium is None else len(self.equilibrium.x)
