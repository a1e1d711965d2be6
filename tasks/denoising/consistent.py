"""The feasible set of a measurement without noise."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.feasible import A_SAMPLE, FeasibleSet

from .operator import MeasurementOperator


@dataclass(frozen=True)
class Consistent(FeasibleSet):
    """The images with ``A x = y``, where ``A A^T y = c y``: the nearest one to x is ``x + A^T (y - A x) / c``.

    Args:
        operator: a tight operator, not bound.
        y, parameters: the measurements, (B, ...), and the parameters that the operator drew for them.

    Raises:
        ProblemError: the operator is not tight.
    """

    operator: MeasurementOperator
    y: Tensor = field(metadata=A_SAMPLE)
    parameters: Tensor = field(metadata=A_SAMPLE)

    def __post_init__(self) -> None:
        if not self.operator.tight:
            raise ProblemError(
                f"{type(self.operator).__name__} is not tight: the projection onto its measurements is not known"
            )

    def project(self, x: Tensor) -> Tensor:
        bound, c = self.operator.bind(self.parameters), self.operator.tight
        assert c is not None
        y = self.y.to(x.dtype)
        return x + bound.A_adjoint(y - bound.A(x)) / c
