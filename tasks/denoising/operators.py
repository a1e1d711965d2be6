"""Operators that are the same for every sample: noise alone, fewer pixels, blur, random convolution."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from deqopt.errors import DataError, ProblemError, check_finite
from deqopt.ranges import at_least, positive, positive_share

from .operator import Measurement, MeasurementOperator, Shape


@dataclass(frozen=True)
class Denoising(MeasurementOperator):
    """``A x = x``: the image itself is measured, with noise.

    Args:
        sigma: standard deviation of the noise for images in [-1, 1], twice that for [0, 1].
    """

    sigma: float = 0.2

    @property
    def tight(self) -> float:
        return 1.0

    def A(self, x: Tensor) -> Tensor:
        return x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y


@dataclass(frozen=True)
class SuperResolution(MeasurementOperator):
    """``A x`` is the mean over every block of factor x factor pixels, (B, channels, H / factor, W / factor).

    ``A A^T y = y / factor^2``: a first estimate repeats every measured pixel.

    Args:
        factor: side of a block, 2 or larger; must divide the height and the width of the images.

    Raises:
        ProblemError: a factor below 2; in :meth:`check` and :meth:`A`, a factor that does not divide the image's sides.
    """

    factor: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(2, "SuperResolution", factor=self.factor)

    @property
    def tight(self) -> float:
        return 1.0 / self.factor**2

    def check(self, shape: Shape) -> None:
        _, height, width = shape
        if height % self.factor or width % self.factor:
            raise ProblemError(
                f"SuperResolution: the factor {self.factor} must divide both sides of the image, got {height} x {width}"
            )

    def A(self, x: Tensor) -> Tensor:
        self.check((x.shape[1], x.shape[2], x.shape[3]))
        return F.avg_pool2d(x, self.factor)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3) / self.factor**2

    def initial(self, y: Tensor) -> Tensor:
        """Bicubic interpolation, moved to the nearest image with the measured means."""
        x = F.interpolate(y.float(), scale_factor=self.factor, mode="bicubic", antialias=True).to(y.dtype)
        return x + self.A_adjoint(y - self.A(x)) / self.tight


# -- blur -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel(ABC):
    """The blur of a single point."""

    @abstractmethod
    def weights(self) -> Tensor:
        """The weights of the kernel, (height, width), float64; they sum to 1."""


@dataclass(frozen=True)
class GaussianKernel(Kernel):
    """``k(r, c)`` in proportion to ``exp(-(r^2 + c^2) / (2 deviation^2))``: blur by a lens out of focus or by the air.

    Args:
        deviation: standard deviation in pixels, larger than 0.
        side: height and width of the kernel in pixels; the kernel is cut off at half of it from the centre.

    Raises:
        ProblemError: a deviation that is not larger than 0, a side below 1.
    """

    deviation: float = 1.5
    side: int = 7

    def __post_init__(self) -> None:
        positive("GaussianKernel", deviation=self.deviation)
        check_finite("GaussianKernel", deviation=self.deviation)
        at_least(1, "GaussianKernel", side=self.side)

    def weights(self) -> Tensor:
        r = torch.arange(self.side, dtype=torch.float64) - (self.side - 1) / 2
        k = torch.softmax(-(r / self.deviation).square() / 2, 0)
        return k[:, None] * k


@dataclass(frozen=True)
class MotionKernel(Kernel):
    """The mean of ``length`` copies of the image, each shifted one pixel further along a line, with bilinear
    interpolation.

    Args:
        length: length of the motion in pixels, 1 or larger.
        angle: angle of the line in degrees, counter-clockwise: 0 along a row and 90 along a column.

    Raises:
        ProblemError: a length below 1, an angle that is not finite.
    """

    length: int = 7
    angle: float = 45.0

    def __post_init__(self) -> None:
        at_least(1, "MotionKernel", length=self.length)
        check_finite("MotionKernel", angle=self.angle)

    def weights(self) -> Tensor:
        radius = self.length // 2
        pixels = torch.arange(-radius, radius + 1, dtype=torch.float64)
        t = torch.arange(self.length, dtype=torch.float64)[:, None] - (self.length - 1) / 2
        angle = math.radians(self.angle)
        rows, columns = ((1 - (pixels - t * step).abs()).clamp_min(0) for step in (-math.sin(angle), math.cos(angle)))
        return rows.T @ columns / self.length


if not TYPE_CHECKING:  # noqa: SIM108
    KernelOrWeights = Kernel | list[list[float]]  # the command line makes no tensors, and should not speak of them
else:
    KernelOrWeights = Kernel | list[list[float]] | Tensor


@dataclass(frozen=True)
class Deblurring(MeasurementOperator):
    """``A x = k * x``, the convolution of every channel with a kernel, where the kernel lies within the image.

    So a measurement is smaller than its image by the side of the kernel minus 1. As in a real photograph, it depends on
    pixels outside its frame. These pixels are restored too, and no values are assumed for them.

    Args:
        kernel: kernel of the blur: a :class:`Kernel`, rows of weights, or in code a tensor, (height, width). Weights
            are divided by their sum.

    Attributes:
        weights: weights of the kernel, (height, width), float64, with the sum 1.

    Raises:
        ProblemError: rows of weights with different lengths, weights that are not finite or sum to 0; in :meth:`check`,
            a kernel that is larger than the image.
    """

    kernel: KernelOrWeights = field(default_factory=GaussianKernel)
    weights: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weights", _normalised(_weights(self.kernel)))

    def check(self, shape: Shape) -> None:
        (h, w), (_, height, width) = self.weights.shape, shape
        if h > height or w > width:
            raise ProblemError(
                f"Deblurring: a kernel of {h} x {w} does not fit into an image of {height} x {width}: "
                "use a smaller kernel or larger images"
            )

    def A(self, x: Tensor) -> Tensor:
        k = _mirrored(self.weights, x.dtype, x.device)
        with torch.autocast(x.device.type, enabled=False):
            y = F.conv2d(x.reshape(-1, 1, *x.shape[2:]), k)
        return y.reshape(*x.shape[:2], *y.shape[2:])

    def A_adjoint(self, y: Tensor) -> Tensor:
        k = _mirrored(self.weights, y.dtype, y.device)
        with torch.autocast(y.device.type, enabled=False):
            x = F.conv_transpose2d(y.reshape(-1, 1, *y.shape[2:]), k)
        return x.reshape(*y.shape[:2], *x.shape[2:])

    def estimate(self, y: Tensor) -> Tensor:
        """y, extended to the size of the image by repeating its border."""
        h, w = (side - 1 for side in self.weights.shape)
        return F.pad(y, (w // 2, w - w // 2, h // 2, h - h // 2), mode="replicate")


def _weights(kernel: KernelOrWeights) -> Tensor:
    """The weights as given, (height, width), float64."""
    if isinstance(kernel, Kernel):
        return kernel.weights()
    if isinstance(kernel, Tensor):
        if kernel.dim() != 2 or kernel.numel() == 0:
            raise ProblemError(f"Deblurring: a kernel must be (height, width), got a tensor {tuple(kernel.shape)}")
        return kernel.detach().to("cpu", torch.float64)
    lengths = [len(row) for row in kernel]
    if not lengths or lengths[0] == 0 or len(set(lengths)) > 1:
        raise ProblemError(
            f"Deblurring: the rows of a kernel must have one length, 1 or larger, got {len(lengths)} rows of lengths "
            f"{lengths}"
        )
    return torch.tensor(kernel, dtype=torch.float64)


def _normalised(weights: Tensor) -> Tensor:
    if not weights.isfinite().all():
        raise ProblemError("Deblurring: the weights of a kernel must be finite, got NaN or infinite ones")
    total = weights.sum()
    if total.abs() <= 1e-9 * weights.abs().sum():
        raise ProblemError("Deblurring: the weights of a kernel must not sum to 0: a blur keeps the mean of an image")
    return weights / total


@lru_cache(maxsize=16)
def _mirrored(weights: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The kernel whose correlation, which is what conv2d computes, is the convolution; (1, 1, height, width)."""
    with torch.inference_mode(False):  # what is kept must serve in training too
        return weights.to(device, dtype).flip(0, 1)[None, None]


# -- random convolution -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CompressedSensing(MeasurementOperator):
    """``A x = mask * U x``, a random convolution of which only some entries are measured (Romberg 2009).

    ``U = F^-1 diag(p) F`` is orthonormal. F is the Fourier transform of the pixels of a channel in one row, and p is
    random with modulus 1. Every measured number depends on all pixels. y has the shape of the image, with 0 where
    nothing is measured.

    Args:
        ratio: share of the entries that are measured, in (0, 1].
        seed: seed that determines, with the number of pixels, the mask and p; all channels and samples share them.

    Raises:
        ProblemError: a ratio outside (0, 1]; in :meth:`check`, a ratio at which nothing is measured.
    """

    ratio: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_share("CompressedSensing", ratio=self.ratio)

    @property
    def tight(self) -> float:
        return 1.0

    def check(self, shape: Shape) -> None:
        _, height, width = shape
        if round(self.ratio * height * width) == 0:
            raise ProblemError(
                f"CompressedSensing: at the ratio {self.ratio:g} nothing of an image of {height} x {width} is "
                f"measured: ratio should be {1 / (height * width):.2g} or larger"
            )

    def A(self, x: Tensor) -> Tensor:
        p, mask = self._drawn(x)
        return mask * _filtered(x, p)

    def A_adjoint(self, y: Tensor) -> Tensor:
        p, mask = self._drawn(y)
        return _filtered(mask * y, p.conj())

    def observed(self, y: Tensor) -> Tensor:
        return self._drawn(y)[1] * y

    def read(self, image: Tensor, name: str) -> Measurement:
        raise DataError(
            f"{name} is an image, but a measurement of CompressedSensing is not an image: give clean images, which "
            "are then measured"
        )

    def _drawn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p, mask = _random_convolution(x.shape[2] * x.shape[3], self.ratio, self.seed, x.dtype, x.device)
        return p, mask.reshape(x.shape[2:])


def _filtered(x: Tensor, p: Tensor) -> Tensor:
    """``F^-1 diag(p) F x`` for every channel; computed in full precision, also for half-precision x."""
    rows = x.flatten(2).to(_computed_in(x.dtype))
    return torch.fft.irfft(torch.fft.rfft(rows) * p, rows.shape[-1]).to(x.dtype).reshape(x.shape)


@lru_cache(maxsize=16)
def _random_convolution(
    pixels: int, ratio: float, seed: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """p, (pixels // 2 + 1,) complex, for the frequencies that determine all others, and the mask, (pixels,)."""
    with torch.inference_mode(False):  # what is kept must serve in training too
        generator = torch.Generator().manual_seed(seed)
        angles = 2 * math.pi * torch.rand(pixels // 2 + 1, generator=generator, dtype=torch.float64)
        signs = torch.randint(2, (2,), generator=generator).to(torch.complex128) * 2 - 1
        p = torch.polar(torch.ones_like(angles), angles)
        p[0] = signs[0]
        if pixels % 2 == 0:
            p[-1] = signs[1]
        mask = torch.zeros(pixels, dtype=dtype)
        mask[torch.randperm(pixels, generator=generator)[: round(ratio * pixels)]] = 1
        return p.to(device, _computed_in(dtype).to_complex()), mask.to(device)


def _computed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
