"""The restorer: what is optimised is the image itself, under a learned energy."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from deqopt.errors import ProblemError
from deqopt.feasible import FeasibleSet
from deqopt.nn import ImageInjection, MultiscaleCell, PixelHead
from deqopt.nn.multiscale import Branches

from .consistent import Consistent
from .operator import MeasurementOperator, Shape
from .prior import Prior, PriorFamily


@dataclass(frozen=True)
class Restorer(PriorFamily):
    """The image is x itself; the energy is ``|r|^2 / 2``, where r(z), as large as the image, is what the network finds
    unlike an image in x.

    ``x - r`` is the network's own guess, so that the energy is that of a gradient-step denoiser, ``|x - D(x)|^2 / 2``
    (Hurault, Leclaire, Papadakis 2022), with an equilibrium network inside, trained through the optimum (Gilton, Ongie,
    Willett: Deep equilibrium architectures for inverse problems, 2021). Where a measurement has no noise and its A is
    tight, x stays among the images that fit it (Heaton, Wu Fung, Gibali, Yin: Feasibility-based fixed point networks,
    2021). Images may have any size: they are padded inside to whole cells.

    Args:
        widths: channels of the cell's branches, finest first; each branch has half the resolution of the one before.
        factor: height and width of the image over those of the finest branch.
        first_scale: of the last layer's first weights against PyTorch's: how strong the energy is before training.

    Raises:
        ProblemError: no widths, or settings that are not positive.
    """

    widths: list[int] = field(default_factory=lambda: [32, 32])
    factor: int = 2
    first_scale: float = 0.3

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1 or self.factor < 1 or not self.first_scale > 0:
            raise ProblemError(
                "Restorer: widths must be positive numbers, factor at least 1 and first_scale larger than 0; "
                f"got {self.widths}, {self.factor} and {self.first_scale}"
            )

    def build(self, shape: Shape) -> ImagePrior:
        return ImagePrior(self, shape[0])


class ImagePrior(Prior):
    """See :class:`Restorer`. Beside x the network sees which pixels were measured."""

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

    def start(self, estimate: Tensor, support: Tensor) -> tuple[Branches, Tensor]:
        """The estimate, and the state after one application of the cell: at zero itself normalisation is singular."""
        height, width = self._padded(estimate).shape[-2:]
        sides = [self.factor * 2**i for i in range(len(self.widths))]
        zeros = tuple(
            estimate.new_zeros(len(estimate), count, height // side, width // side)
            for count, side in zip(self.widths, sides, strict=True)
        )
        return tuple(part.detach() for part in self.f(zeros, estimate, support)), estimate

    def f(self, z: Branches, x: Tensor, support: Tensor) -> Branches:
        found: Branches = self.cell(z, self.injection(self._padded(torch.cat([x, support], dim=1))))
        return found

    def image(self, z: Branches, x: Tensor) -> Tensor:
        return x

    def energy(self, z: Branches, x: Tensor) -> Tensor:
        return self.residual(z, x).square().flatten(1).sum(1) / 2

    def residual(self, z: Branches, x: Tensor) -> Tensor:
        """r, (B, channels, H, W): what the network finds unlike an image in x."""
        found: Tensor = self.head(z)
        return found[..., : x.shape[-2], : x.shape[-1]]

    def feasible(self, operator: MeasurementOperator, y: Tensor, parameters: Tensor) -> FeasibleSet:
        if operator.sigma == 0 and operator.tight:
            return Consistent(operator, y, parameters)
        return super().feasible(operator, y, parameters)

    def _padded(self, image: Tensor) -> Tensor:
        """Repeats the last row and column until the network's coarsest branch has whole pixels."""
        bottom, right = (-side % self.multiple for side in image.shape[-2:])
        return F.pad(image, (0, right, 0, bottom), mode="replicate") if bottom or right else image
