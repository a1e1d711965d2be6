"""Latent fitting: the image is the output of a decoder for a latent."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from deqopt.errors import ProblemError, check_finite
from deqopt.nn import Decoder
from deqopt.nn.multiscale import Branches
from deqopt.ranges import at_least, not_negative

from .operator import Shape
from .prior import MeasurementData, Prior, PriorFamily


@dataclass(frozen=True)
class LatentFit(PriorFamily):
    """The image is ``u = G(x)``, read off the equilibrium of a decoder; the energy is ``weight |x|^2``.

    The restored image is always an output of the decoder. This is good if much of the image is missing.

    Args:
        latent: length of x.
        widths: channels of the cell's branches, finest first; each branch has half the resolution of the one before.
        resolution: height and width of the finest branch; must divide the size of the images. By default half of it.
        weight: weight of ``|x|^2`` against half of the squared misfit, summed over all measured entries.

    Raises:
        ProblemError: a length below 1 or a negative weight.
    """

    latent: int = 64
    widths: list[int] = field(default_factory=lambda: [24, 32])
    resolution: int | None = None
    weight: float = 1e-3

    def __post_init__(self) -> None:
        at_least(1, "LatentFit", latent=self.latent)
        not_negative("LatentFit", weight=self.weight)
        check_finite("LatentFit", weight=self.weight)

    def build(self, shape: Shape) -> LatentPrior:
        return LatentPrior(self, shape)


class LatentPrior(Prior):
    """See :class:`LatentFit`; for images of one shape, height and width equal."""

    def __init__(self, settings: LatentFit, shape: Shape) -> None:
        super().__init__()
        channels, size, width = shape
        if size != width:
            raise ProblemError(f"LatentFit makes square images, but these are {size}x{width}")
        resolution = size // 2 if settings.resolution is None else settings.resolution
        self.latent, self.weight, self.shape = settings.latent, settings.weight, shape
        self.decoder = Decoder(settings.latent, settings.widths, resolution, channels, size)
        self.cell = self.decoder.cell

    def start(self, known: MeasurementData) -> tuple[Branches, Tensor]:
        """The zero latent, and the state after one application of the cell: normalisation is singular at zero.

        Raises:
            ProblemError: images of another shape than the network's.
        """
        if known.initial.shape[1:] != self.shape:
            raise ProblemError(
                f"LatentFit was made for images of {'x'.join(map(str, self.shape))}, but these are "
                f"{'x'.join(map(str, known.initial.shape[1:]))}: the prior Restorer takes any size"
            )
        x0 = known.initial.new_zeros(len(known.initial), self.latent)
        return tuple(part.detach() for part in self.decoder.f(self.decoder.start(x0), x0)), x0

    def f(self, z: Branches, x: Tensor, known: MeasurementData) -> Branches:
        return self.decoder.f(z, x)

    def image(self, z: Branches, x: Tensor) -> Tensor:
        image: Tensor = self.decoder.head(z)
        return image

    def energy(self, z: Branches, x: Tensor, known: MeasurementData) -> Tensor:
        return self.weight * x.square().sum(1)
