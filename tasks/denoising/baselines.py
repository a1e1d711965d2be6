"""Classical restorations, for comparison with learned ones. Their settings are chosen on validation images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from deqopt.data import unsigned
from deqopt.errors import ProblemError
from deqopt.image_quality import psnr

from .data import RestorationBatch
from .inpainting import Inpainting
from .operator import MeasurementOperator
from .operators import Deblurring, Denoising, SuperResolution


@dataclass(frozen=True)
class Baseline(ABC):
    """A restoration without learning. Its fields are its settings; it uses only the measurement and the operator."""

    name: ClassVar[str]

    @property
    def setting(self) -> str:
        """The setting that :func:`choose` has chosen, as text; empty if there is nothing to choose."""
        return ""

    def settings(self, operator: MeasurementOperator) -> Sequence[Baseline]:
        """The same method with all settings that should be tried for an operator; by default only the present one."""
        return (self,)

    @abstractmethod
    def image(self, operator: MeasurementOperator, y: Tensor) -> Tensor:
        """The restored image, (1, channels, H, W) in [-1, 1], for y, (1, ...), measured by the bound operator."""

    @torch.no_grad()
    def restore(self, operator: MeasurementOperator, y: Tensor, parameters: Tensor) -> Tensor:
        """The restored images, (B, channels, H, W), float32 in [0, 1]; each is restored independently.

        Args:
            operator: operator of the measurements, not bound.
            y: the measurements, (B, ...).
            parameters: parameters that the operator drew for the measurements, (B, ...).
        """
        y = y.float()
        images = [self.image(operator.bind(parameters[i : i + 1]), y[i : i + 1]) for i in range(len(y))]
        return unsigned(torch.cat(images).float()).clamp(0, 1)


@dataclass(frozen=True)
class TotalVariation(Baseline):
    """``min_x  |A x - y|^2 / (2 L) + w TV(x)``, with the isotropic total variation of every channel and ``L = |A|^2``.

    Solved by FISTA (Beck and Teboulle 2009), with accelerated steps ``x <- prox_{w TV}(v - A^T (A v - y) / L)``. The
    prox is that of scikit-image (Chambolle 2004). For pure denoising, only the first step is done. If y has no noise
    and A is tight, the result is projected onto the images that fit y.

    Args:
        weight: w, larger than 0.
        iterations: largest number of steps; fewer if no pixel changes any more.
    """

    name: ClassVar[str] = "total variation"
    weight: float = 0.1
    iterations: int = 60

    @property
    def setting(self) -> str:
        return f"weight {self.weight:.2g}"

    def settings(self, operator: MeasurementOperator) -> Sequence[TotalVariation]:
        """Weights in proportion to sigma, with a small minimum of sigma; the grid is fine if there is only one step."""
        if isinstance(operator, Denoising):
            weights = [0.3 * 1.25**k * max(operator.sigma, 0.02) for k in range(10)]
        else:
            weights = [0.05 * 2.0**k * max(operator.sigma, 0.005) for k in range(8)]
        return [replace(self, weight=weight) for weight in weights]

    def image(self, operator: MeasurementOperator, y: Tensor) -> Tensor:
        from skimage.restoration import denoise_tv_chambolle

        x = v = operator.estimate(y)
        L, t, before = operator.tight or squared_norm(operator, x), 1.0, None
        for _ in range(self.iterations):
            target = v - operator.A_adjoint(operator.A(v) - y) / L
            if before is not None and (target - before).abs().max() < 1e-5:
                break
            moved = _tensor(denoise_tv_chambolle(_array(target), weight=self.weight, channel_axis=0), y)
            t, last = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
            x, v, before = moved, moved + (last - 1) / t * (moved - x), target
        if operator.sigma == 0 and operator.tight is not None:
            x = x + operator.A_adjoint(y - operator.A(x)) / operator.tight
        return x


@dataclass(frozen=True)
class NonLocalMeans(Baseline):
    """Every pixel becomes the mean of pixels with similar surroundings (Buades, Coll and Morel 2005), by scikit-image.

    Only for pure denoising. The weights take the known sigma into account.

    Args:
        decay: decay of the weights with the distance of patches, in units of sigma.
        patch: side of a patch in pixels.
        reach: largest distance in pixels at which similar patches are searched.
    """

    name: ClassVar[str] = "non-local means"
    decay: float = 0.8
    patch: int = 5
    reach: int = 6

    @property
    def setting(self) -> str:
        return f"decay {self.decay:g}, patch {self.patch}, reach {self.reach}"

    def settings(self, operator: MeasurementOperator) -> Sequence[NonLocalMeans]:
        grid = product((0.45, 0.6, 0.75, 0.9, 1.2), (3, 5, 7), (3, 6, 11))
        return [NonLocalMeans(*setting) for setting in grid]

    def image(self, operator: MeasurementOperator, y: Tensor) -> Tensor:
        from skimage.restoration import denoise_nl_means

        image = _array(y)
        restored = denoise_nl_means(
            image if len(image) > 1 else image[0],  # for one channel it would return the transpose
            patch_size=self.patch,
            patch_distance=self.reach,
            h=self.decay * operator.sigma,
            sigma=operator.sigma,
            channel_axis=0 if len(image) > 1 else None,
        )
        return _tensor(restored, y).reshape(y.shape)


@dataclass(frozen=True)
class Biharmonic(Baseline):
    """Hidden pixels are filled by the surface with ``Laplace^2 x = 0`` through the known pixels (Damelin and Hoang
    2018).

    Only for inpainting, by scikit-image. Known pixels stay unchanged, including their noise.
    """

    name: ClassVar[str] = "biharmonic"

    def image(self, operator: MeasurementOperator, y: Tensor) -> Tensor:
        from skimage.restoration import inpaint_biharmonic

        hidden = operator.observed(torch.ones_like(y))[0, 0] == 0
        restored = inpaint_biharmonic(_array(y), hidden.cpu().numpy(), channel_axis=0)
        return _tensor(restored, y)


@dataclass(frozen=True)
class Bicubic(Baseline):
    """Bicubic interpolation between the measured pixels (Keys 1981). Only for super-resolution."""

    name: ClassVar[str] = "bicubic"

    def image(self, operator: MeasurementOperator, y: Tensor) -> Tensor:
        # With antialias the kernel is that of Keys, which continues planes; without it PyTorch takes another.
        return F.interpolate(y, size=operator.estimate(y).shape[2:], mode="bicubic", antialias=True)


@dataclass(frozen=True)
class Wiener(Baseline):
    """Deconvolution that prefers smooth images, ``min_x  |k * x - y|^2 + b |Laplace x|^2`` (Hunt 1973), by FFT.

    Only for deblurring, by scikit-image, which treats images as periodic. So the measurement, which is smaller than the
    image, is extended by repeating its border: to the size of the image, and further by the size of the kernel. The
    additional pixels are cut off in the end.

    Args:
        balance: b, larger than 0.
    """

    name: ClassVar[str] = "Wiener"
    balance: float = 0.1

    @property
    def setting(self) -> str:
        return f"balance {self.balance:.2g}"

    def settings(self, operator: MeasurementOperator) -> Sequence[Wiener]:
        """Two values of the balance per decade, from 1e-5 to 10."""
        return [Wiener(balance=10.0 ** (k / 2)) for k in range(-10, 3)]

    def image(self, operator: MeasurementOperator, y: Tensor) -> Tensor:
        from skimage.restoration import wiener

        assert isinstance(operator, Deblurring)
        kernel = operator.weights.numpy().astype(np.float32)
        h, w = kernel.shape
        wide = _array(F.pad(operator.estimate(y), (w, w, h, h), mode="replicate"))
        restored = np.stack([wiener(channel, kernel, self.balance, clip=False) for channel in wide])
        return _tensor(restored[:, h:-h, w:-w], y)


def baselines_for(operator: MeasurementOperator) -> list[Baseline]:
    """The methods that fit an operator; for an unknown operator, total variation alone."""
    match operator:
        case Denoising() if operator.sigma > 0:
            return [TotalVariation(), NonLocalMeans()]
        case Inpainting():
            return [Biharmonic(), TotalVariation()]
        case SuperResolution():
            return [Bicubic(), TotalVariation()]
        case Deblurring():
            return [Wiener(), TotalVariation()]
        case _:
            return [TotalVariation()]


class ChosenSetting(NamedTuple):
    """A baseline with its best settings, and its mean PSNR with these settings, in dB."""

    baseline: Baseline
    psnr: float


def choose(baseline: Baseline, operator: MeasurementOperator, batches: Sequence[RestorationBatch]) -> ChosenSetting:
    """The setting of a baseline with the highest mean PSNR on images that are not used to compare it; in a tie, the
    first.

    Args:
        operator: operator of the measurements, not bound.
        batches: measurements with known clean images, at least one.

    Raises:
        ProblemError: there is no image.
    """
    if not sum(len(batch.y) for batch in batches):
        raise ProblemError(f"there is no validation image by which the settings of {baseline.name} could be chosen")
    choices = []
    for candidate in baseline.settings(operator):
        found = [psnr(candidate.restore(operator, b.y, b.parameters), b.clean) for b in batches]
        choices.append(ChosenSetting(candidate, float(torch.cat(found).mean())))
    return max(choices, key=lambda choice: choice.psnr)


def squared_norm(operator: MeasurementOperator, like: Tensor, iterations: int = 30) -> float:
    """``|A|^2``, the largest eigenvalue of ``A^T A``, with a small margin above the result of power iterations; at
    least 1e-12.

    Args:
        operator: operator that is bound to one image.
        like: an image of the same shape, (1, channels, H, W).
    """
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(like.shape, generator=generator).to(like)
    norm = v.norm()
    for _ in range(iterations):
        v = operator.A_adjoint(operator.A(v / norm))
        norm = v.norm().clamp_min(1e-12)
    return 1.05 * float(norm)


def _array(images: Tensor) -> NDArray[Any]:
    """An array (channels, H, W) from images (1, channels, H, W)."""
    return images[0].cpu().numpy()


def _tensor(image: NDArray[Any], like: Tensor) -> Tensor:
    """A tensor (1, channels, H, W) from an image (channels, H, W), on the device of a measurement."""
    return torch.from_numpy(np.ascontiguousarray(image)).to(like)[None]
