"""The least that a reconstruction must beat: the mean of the training images, shown for every test image."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from deqopt.data import ImageDataModule


class MeanImageBaseline(Callback):
    """Logs ``test/psnr_mean_image``, in dB, beside the figures of the test.

    Args:
        data: the images.
        images: the most training images that are averaged, and the most test images that are compared.
    """

    def __init__(self, data: ImageDataModule, images: int = 2048) -> None:
        self._data, self._images = data, images

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mean = torch.stack(self._load(self._data.splits.train)).mean(0)
        errors = torch.stack([(image - mean).square().mean() for image in self._load(self._data.splits.test)])
        pl_module.log("test/psnr_mean_image", (-10 * torch.log10(errors)).mean(), sync_dist=True)

    def _load(self, split: list[int]) -> list[Tensor]:
        return [self._data.source[index].image for index in split[: self._images]]
