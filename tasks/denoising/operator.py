"""The measurement of an image, and the operators that make it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from deqopt.data import signed
from deqopt.errors import DataError, ProblemError, check_finite
from deqopt.ranges import not_negative

Shape = tuple[int, int, int]
"""(channels, height, width) of an image."""


class Measurement(NamedTuple):
    """The measurement y of an image, and the parameters that the operator drew for it (empty if it draws none)."""

    y: Tensor
    parameters: Tensor


@dataclass(frozen=True)
class MeasurementOperator(ABC):
    """``y = A x + sigma n`` with a linear A and white Gaussian n. Images x are (B, channels, H, W) in [-1, 1], so that
    0, the value of an entry that is not measured, is a middle grey. :func:`measure` converts pixels in [0, 1].

    A subclass defines ``A`` and ``A_adjoint``. If A differs between samples, such as a mask at a random place, the
    subclass draws its parameters in :meth:`draw` and gets them back, stacked for a batch, in :meth:`bind`.

    Args:
        sigma: standard deviation of the noise for images in [-1, 1], twice that for [0, 1]; 0 or larger.

    Raises:
        ProblemError: a sigma that is negative or not finite.
    """

    sigma: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        not_negative(type(self).__name__, sigma=self.sigma)
        check_finite(type(self).__name__, sigma=self.sigma)

    @abstractmethod
    def A(self, x: Tensor) -> Tensor:
        """The measurement without noise, (B, ...), of images (B, channels, H, W)."""

    @abstractmethod
    def A_adjoint(self, y: Tensor) -> Tensor:
        """``A^T y``, (B, channels, H, W): ``<A x, y> = <x, A^T y>``."""

    @property
    def tight(self) -> float | None:
        """The c with ``A A^T y = c y`` for all y in the range of A; None if there is no such c, or it is unknown.

        With c, the projection onto the images that fit a measurement is ``x + A^T (y - A x) / c``.
        """
        return None

    def check(self, shape: Shape) -> None:  # noqa: B027
        """Raise ProblemError if A does not fit images of this shape; by default every shape fits."""

    def draw(self, shape: Shape, generator: torch.Generator) -> Tensor:
        """The parameters of A for one image, a tensor; by default empty, (0,)."""
        return torch.empty(0)

    def bind(self, parameters: Tensor) -> MeasurementOperator:
        """The operator for a batch of samples with these parameters, (B, ...); by default the same for all samples."""
        return self

    def observed(self, y: Tensor) -> Tensor:
        """y with 0 in the entries that are not measured, so that they get no noise; by default all are measured."""
        return y

    def estimate(self, y: Tensor) -> Tensor:
        """A first estimate of the image, (B, channels, H, W): ``A^T y / c`` if A is tight, otherwise ``A^T y``."""
        return self.A_adjoint(y) / (self.tight or 1.0)

    def initial(self, y: Tensor) -> Tensor:
        """The image, (B, channels, H, W), from which a restorer starts: by default :meth:`estimate`.

        If A is tight and there is no noise, this image must fit the measurement, ``A initial(y) = y``.
        """
        return self.estimate(y)

    def read(self, image: Tensor, name: str) -> Measurement:
        """The measurement that a user's damaged image, (channels, h, w) in [-1, 1], stands for; by default the image.

        Args:
            image: the damaged image.
            name: name of the image, for messages and to find files that belong to it.

        Raises:
            DataError: an image cannot be a measurement of this kind, or a file that belongs to it is missing.
        """
        return Measurement(image, torch.empty(0))


class LinearPhysics(Protocol):
    """Any object that measures batches of images, (B, channels, H, W), such as a linear physics of deepinv."""

    def A(self, x: Tensor) -> Tensor:
        """The measurement of x."""

    def A_adjoint(self, y: Tensor) -> Tensor:
        """``A^T y``."""


@dataclass(frozen=True)
class External(MeasurementOperator):
    """Any object with methods ``A`` and ``A_adjoint`` on batches of images, such as a linear physics of deepinv.

    Args:
        physics: the object. Its own noise is not used; the noise has the standard deviation sigma.

    Raises:
        ProblemError: the object lacks one of the methods.
    """

    physics: LinearPhysics | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        missing = [name for name in ("A", "A_adjoint") if not callable(getattr(self.physics, name, None))]
        if missing:
            raise ProblemError(
                f"a measurement operator needs the methods A and A_adjoint: {type(self.physics).__name__} has no "
                f"{' and no '.join(missing)}"
            )

    def A(self, x: Tensor) -> Tensor:
        y: Tensor = self.physics.A(x)  # type: ignore[union-attr]  # checked when it was made
        return y

    def A_adjoint(self, y: Tensor) -> Tensor:
        x: Tensor = self.physics.A_adjoint(y)  # type: ignore[union-attr]
        return x


def as_operator(operator: Any) -> MeasurementOperator:
    """A measurement operator unchanged, and any other object with ``A`` and ``A_adjoint`` as :class:`External`."""
    return operator if isinstance(operator, MeasurementOperator) else External(physics=operator)


def measure(operator: MeasurementOperator, image: Tensor, generator: torch.Generator) -> Measurement:
    """The measurement of a clean image, (channels, H, W) in [0, 1], which is mapped to [-1, 1] first.

    Parameters and noise depend only on the generator.

    Raises:
        DataError: the result of A is not finite.
    """
    shape = (image.shape[0], image.shape[1], image.shape[2])
    parameters = operator.draw(shape, generator)
    bound = operator.bind(parameters[None])
    with torch.no_grad():
        clean = bound.A(signed(image)[None])
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
        y = clean + operator.sigma * bound.observed(noise)
    if not y.isfinite().all():
        raise DataError(f"{type(operator).__name__}: the measurement of an image is not finite")
    return Measurement(y[0], parameters)
