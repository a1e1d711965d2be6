"""What is known of images besides a measurement: a prior, and the two families of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from deqopt.feasible import Everywhere, FeasibleSet
from deqopt.nn.multiscale import Branches

from .operator import MeasurementOperator, Shape


class Prior(nn.Module, ABC):
    """The part of an inner problem that is learned: ``z = f(z, x)``, an image u(z, x), and an energy R(z, x).

    min_x  |A u(z, x) - y|^2 / 2 + R(z, x)     subject to   z = f(z, x),   x in X
    """

    cell: nn.Module
    """The network behind f."""

    @abstractmethod
    def start(self, estimate: Tensor, support: Tensor) -> tuple[Branches, Tensor]:
        """``(z0, x0)``, detached, where the first estimate of the image is (B, channels, H, W).

        Args:
            support: ``A^T A 1``, (B, channels, H, W): 0 where a pixel was not seen.
        """

    @abstractmethod
    def f(self, z: Branches, x: Tensor, support: Tensor) -> Branches:
        """One application of the cell; z is a tuple of (B, width, h, w)."""

    @abstractmethod
    def image(self, z: Branches, x: Tensor) -> Tensor:
        """u, (B, channels, H, W): the image that a solution stands for."""

    @abstractmethod
    def energy(self, z: Branches, x: Tensor) -> Tensor:
        """R, (B,)."""

    def feasible(self, operator: MeasurementOperator, y: Tensor, parameters: Tensor) -> FeasibleSet:
        """X; by default everywhere.

        Args:
            operator: not bound.
            y, parameters: of the batch.
        """
        return Everywhere()


@dataclass(frozen=True)
class PriorFamily(ABC):
    """The settings of a prior, from which it is made once the images are known."""

    @abstractmethod
    def build(self, shape: Shape) -> Prior:
        """A new network for images of a shape.

        Raises:
            ProblemError: the settings do not fit the shape.
        """
