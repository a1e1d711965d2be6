"""The least that a reconstruction must beat: the mean of the training images, shown for every test image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from deqopt.data import ImageSource

if TYPE_CHECKING:
    from .task import CelebA


class MeanImageBaseline(Callback):
    """Logs ``test/psnr_mean_image``, in dB, beside the figures of the test.

    Args:
        images: the most training images that are averaged, and the most test images that are compared.
    """

    def __init__(self, images: int = 2048) -> None:
        self._images = images

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task: CelebA = pl_module.task  # type: ignore[assignment]
        source, splits = task.data.source, task.data.splits
        mean = torch.stack(self._load(source, splits.train)).mean(0)
        errors = torch.stack([(image - mean).square().mean() for image in self._load(source, splits.test)])
        pl_module.log("test/psnr_mean_image", (10 * torch.log10(4 / errors)).mean(), sync_dist=True)

    def _load(self, source: ImageSource, split: list[int]) -> list[Tensor]:
        return [source[index].image for index in split[: self._images]]
