"""The tiny task on digits of two by two pixels, which a data module with splits serves in an order of their own."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deqopt import JointModule
from deqopt.data import ImageDataModule, ImageSample, ImageSource, open_images
from deqopt.data.module import Collate
from deqopt.optimization import Optimization
from deqopt.step_guard import zero_loss
from tiny_task import STATE, Batch, Tiny


@cache
def digits() -> ImageSource:
    return open_images(None, size=2, channels=1)


class Pictures(ImageDataModule):
    """Batches of the tiny task."""

    def collate(self, training: bool) -> Collate:
        return _targets


class TinyPictures(Tiny):
    """The digits as targets.

    Args:
        batch_size: samples a batch.
        workers: processes that load them.
    """

    def __init__(self, batch_size: int = 8, workers: int = 0) -> None:
        super().__init__()
        self._size, self._workers = batch_size, workers

    def datamodule(self) -> Pictures:  # type: ignore[override]
        return Pictures(digits, batch_size=self._size, workers=self._workers)


def _targets(samples: list[ImageSample]) -> Batch:
    return {
        "y": torch.stack([sample.image.flatten() for sample in samples]),
        "index": torch.tensor([sample.index for sample in samples]),
    }


class Quick(JointModule):
    """Trains and validates the head alone, on noise from all global generators: a step takes milliseconds."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train/loss", loss)
        self.learns = True
        return loss + zero_loss(self)  # several processes wait for the gradients of all parameters

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        self.log("val/loss", self._loss(batch), batch_size=len(batch["y"]))
        return {}

    def _loss(self, batch: Batch) -> Tensor:
        noise = torch.randn(len(batch["y"]), STATE) + random.random() + np.random.rand()
        return (self.task.head(noise) - batch["y"]).square().mean()  # type: ignore[operator]


def quick(optimization: Optimization | None = None, **settings: Any) -> Quick:
    return Quick(TinyPictures(**settings), optimization=optimization)


EPOCH = {"limit_train_batches": 3, "limit_val_batches": 2}
SIX = {"max_epochs": 2, **EPOCH}
"""Settings of a trainer for an epoch of three steps, and for two of them."""

DECAYING = Optimization(
    "torch.optim.RMSprop", 0.1, 0.01, "torch.optim.lr_scheduler.ExponentialLR", schedule_args={"gamma": 0.5}
)
