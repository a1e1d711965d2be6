"""Priors: the learned knowledge about images that adds to a measurement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deqopt.feasible import Everywhere, FeasibleSet
from deqopt.nn.multiscale import Branches

from .operator import MeasurementOperator, Shape


class MeasurementData(NamedTuple):
    """The measurements of the images of a batch, with values derived from them.

    Attributes:
        y: the measurements, (B, ...).
        parameters: parameters that the operator drew for the measurements, (B, ...).
        support: ``A^T A 1 / c``, (B, channels, H, W): how well each pixel is measured, 0 for not at all.
        initial: a first guess of the images, (B, channels, H, W); see :meth:`MeasurementOperator.initial`.
    """

    y: Tensor
    parameters: Tensor
    support: Tensor
    initial: Tensor

    @classmethod
    def of(cls, operator: MeasurementOperator, y: Tensor, parameters: Tensor) -> MeasurementData:
        """The data for measurements of an operator that is not bound."""
        bound = operator.bind(parameters)
        with torch.no_grad():
            initial = bound.initial(y)
            support = bound.A_adjoint(bound.A(torch.ones_like(initial))) / (operator.tight or 1.0)
        return cls(y, parameters, support, initial)


class Prior(nn.Module, ABC):
    """The learned part of an inner problem: ``z = f(z, x)``, an image u(z, x), and an energy R(z, x).

    min_x  |A u(z, x) - y|^2 / 2 + R(z, x)     subject to   z = f(z, x),   x in X
    """

    cell: nn.Module
    """The network behind f."""

    @abstractmethod
    def start(self, known: MeasurementData) -> tuple[Branches, Tensor]:
        """``(z0, x0)``, detached."""

    @abstractmethod
    def f(self, z: Branches, x: Tensor, known: MeasurementData) -> Branches:
        """One application of the cell; z is a tuple of (B, width, h, w)."""

    @abstractmethod
    def image(self, z: Branches, x: Tensor) -> Tensor:
        """u, (B, channels, H, W): the image of a solution."""

    @abstractmethod
    def energy(self, z: Branches, x: Tensor, known: MeasurementData) -> Tensor:
        """R, (B,)."""

    def feasible(self, operator: MeasurementOperator, known: MeasurementData) -> FeasibleSet:
        """X; by default the whole space. The operator is not bound."""
        return Everywhere()


@dataclass(frozen=True)
class PriorFamily(ABC):
    """The settings of a prior, which is created once the shape of the images is known."""

    @abstractmethod
    def build(self, shape: Shape) -> Prior:
        """A new network for images of this shape.

        Raises:
            ProblemError: the settings do not fit the shape.
        """
