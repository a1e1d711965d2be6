"""The callback that compares reconstructions of test images: ours, and the mean image as the simplest baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from deqopt.callbacks.comparison import ComparisonReport
from deqopt.data import ImageBatch, ImageDataModule
from deqopt.equilibrium import Equilibrium
from deqopt.image_quality import IMAGE_MEASURES, image_scores


class ReconstructionReport(ComparisonReport):
    """In test: PSNR and SSIM of the reconstructions, and of ``mean image``, the mean of the training images; see
    `ComparisonReport`. The files are ``figures/reconstructions.*`` and ``figures/images.csv``.

    Args:
        data: the images.
        reconstruct: function that returns our reconstructions (B, channels, H, W) for a solved batch.
        images: largest number of training images that are averaged, and of test images that are compared.
    """

    def __init__(
        self, data: ImageDataModule, reconstruct: Callable[[Equilibrium, ImageBatch], Tensor], images: int = 2048
    ) -> None:
        super().__init__(
            "reconstructions",
            IMAGE_MEASURES,
            lambda images, batch: image_scores(images, batch.image),
            reconstruct,
            noun="images",
            most=images,
        )
        self._data, self._images = data, images

    def methods(self, trainer: Trainer) -> Mapping[str, Callable[[ImageBatch], Tensor]]:
        shown = self._data.splits.train[: self._images]
        mean = torch.stack([self._data.source[index].image for index in shown]).mean(0)
        return {"mean image": lambda batch: mean.to(batch.image).expand_as(batch.image)}
