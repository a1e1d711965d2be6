"""What a training step differentiates on a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from deqopt.equilibrium import Equilibrium


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a batch, and what it is made of.

    Left out are samples whose data, start or loss is NaN or infinite, or whose solve diverged.

    Attributes:
        total: what is differentiated: ``mean`` and the penalties times their weights, a scalar.
        mean: of the losses of the samples that are not left out, a scalar; 0 where there are none.
        batch: these samples; None where all data is NaN or infinite.
        equilibrium: their solutions.
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
        """How many samples are not left out."""
        return 0 if self.equilibrium is None else len(self.equilibrium.x)
