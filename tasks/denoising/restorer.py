"""The restorer: optimises the image itself under a learned energy."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from deqopt.errors import ProblemError, check_finite
from deqopt.feasible import FeasibleSet
from deqopt.nn import ImageInjection, MultiscaleCell, PixelHead
from deqopt.nn.multiscale import Branches
from deqopt.ranges import at_least, positive

from .consistent import Consistent
from .operator import MeasurementOperator, Shape
from .prior import MeasurementData, Prior, PriorFamily


@dataclass(frozen=True)
class Restorer(PriorFamily):
    """The image is x itself; the energy is ``|x - D|^2 / 2`` with the network's guess ``D = s x + (1 - s) e + h(z)``.

    s tells how well each pixel was measured, and e is a first guess of the image. With h, the network corrects x at
    measured pixels and e at the other pixels. It is the energy of a gradient-step denoiser (Hurault, Leclaire,
    Papadakis 2022) with an equilibrium network inside, trained through the optimum (Gilton, Ongie, Willett: Deep
    equilibrium architectures for inverse problems, 2021). If a measurement has no noise and A is tight, x stays in the
    set of images that fit the measurement (Heaton, Wu Fung, Gibali, Yin: Feasibility-based fixed point networks, 2021).
    Images may have any size: they are padded internally to whole pixels of the coarsest branch.

    Args:
        widths: channels of the cell's branches, finest first; each branch has half the resolution of the one before.
        factor: height and width of the image divided by those of the finest branch.
        first_scale: scale of the initial weights of the last layer relative to PyTorch's default: the strength of the
            energy before training.

    Raises:
        ProblemError: no widths, or settings that are not positive.
    """

    widths: list[int] = field(default_factory=lambda: [64])
    factor: int = 2
    first_scale: float = 0.3

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ProblemError(f"Restorer: widths must be positive numbers, got {self.widths}")
        at_least(1, "Restorer", factor=self.factor)
        positive("Restorer", first_scale=self.first_scale)
        check_finite("Restorer", first_scale=self.first_scale)

    def build(self, shape: Shape) -> ImagePrior:
        return ImagePrior(self, shape[0])


class ImagePrior(Prior):
    """See :class:`Restorer`. In addition to x, the network gets the information which pixels were measured."""

    def __init__(self, settings: Restorer, channels: int) -> None:
        super().__init__()
        widths, factor = settings.widths, settings.factor
        self.widths, self.factor = widths, factor
        self.multiple = factor * 2 ** (len(widths) - 1)
        self.cell = MultiscaleCell(widths)
        self.injection = ImageInjection(2 * channels, widths, factor)
        self.head = PixelHead(widths, channels, factor)
        with torch.no_grad():
            for weight in self.head.paint.parameters():
                weight.mul_(settings.first_scale)

    def start(self, known: MeasurementData) -> tuple[Branches, Tensor]:
        """The first guess, and the state after one application of the cell: normalisation is singular at zero."""
        x0 = known.initial
        height, width = self._padded(x0).shape[-2:]
        sides = [self.factor * 2**i for i in range(len(self.widths))]
        zeros = tuple(
            x0.new_zeros(len(x0), count, height // side, width // side)
            for count, side in zip(self.widths, sides, strict=True)
        )
        return tuple(part.detach() for part in self.f(zeros, x0, known)), x0

    def f(self, z: Branches, x: Tensor, known: MeasurementData) -> Branches:
        found: Branches = self.cell(z, self.injection(self._padded(torch.cat([x, known.support], dim=1))))
        return found

    def image(self, z: Branches, x: Tensor) -> Tensor:
        return x

    def energy(self, z: Branches, x: Tensor, known: MeasurementData) -> Tensor:
        return (x - self.guess(z, x, known)).square().flatten(1).sum(1) / 2

    def guess(self, z: Branches, x: Tensor, known: MeasurementData) -> Tensor:
        """D, (B, channels, H, W)."""
        h: Tensor = self.head(z)
        s = known.support.clamp(0, 1)
        return s * x + (1 - s) * known.initial + h[..., : x.shape[-2], : x.shape[-1]]

    def feasible(self, operator: MeasurementOperator, known: MeasurementData) -> FeasibleSet:
        if operator.sigma == 0 and operator.tight:
            return Consistent(operator, known.y, known.parameters)
        return super().feasible(operator, known)

    def _padded(self, image: Tensor) -> Tensor:
        """Repeats the last row and column until the network's coarsest branch has whole pixels."""
        bottom, right = (-side % self.multiple for side in image.shape[-2:])
        return F.pad(image, (0, right, 0, bottom), mode="replicate") if bottom or right else image
