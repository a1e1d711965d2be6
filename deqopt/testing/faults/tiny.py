"""The task of the fault harness: small enough that a whole run takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, Metric

from deqopt.data import ImageBatch, ImageDataModule, open_images, save_image
from deqopt.equilibrium import Equilibrium
from deqopt.problem import JointProblem
from deqopt.task import Task

STATE, INPUT = 6, 3
PRIOR = 0.1


class TinyImages(Task):
    """``z = tanh(A z + U x + b)``; x is sought so that ``C z`` is the image.

    Args:
        root: images, as for every task.
        size: height and width of the images, in grey.
        batch_size: images a batch.
        workers: processes that load images.
    """

    def __init__(self, root: str, size: int = 8, batch_size: int = 8, workers: int = 0) -> None:
        super().__init__()
        self.state, self.input = nn.Linear(STATE, STATE, bias=False), nn.Linear(INPUT, STATE)
        self.head = nn.Linear(STATE, size * size)
        with torch.no_grad():
            self.state.weight.mul_(0.5 / torch.linalg.matrix_norm(self.state.weight, 2))
        self._size = size
        self._open = partial(open_images, root, size=size, channels=1)
        self._batch_size, self._workers = batch_size, workers

    @cached_property
    def data(self) -> ImageDataModule:
        return ImageDataModule(self._open, batch_size=self._batch_size, workers=self._workers)

    def datamodule(self) -> ImageDataModule:
        return self.data

    def start(self, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        y = batch.image
        return y.new_zeros(len(y), STATE), y.new_zeros(len(y), INPUT)

    def problem(self, batch: ImageBatch) -> JointProblem:
        return JointProblem(self._f, self._objective, data=batch.image.flatten(1))

    def _f(self, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.state(z) + self.input(x))

    def _objective(self, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return (self.head(z) - y).square().mean(1) + PRIOR * x.square().sum(1)

    def metrics(self) -> Mapping[str, Metric]:
        return {"mse": MeanSquaredError()}

    def outcome(self, equilibrium: Equilibrium, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        return self.head(equilibrium.z), batch.image.flatten(1)

    def write_predictions(self, equilibrium: Equilibrium, batch: ImageBatch, directory: Path) -> list[Path]:
        """``NAME.png``, the reconstruction, for every image NAME."""
        files = []
        for index, image in zip(batch.index.tolist(), self.head(equilibrium.z), strict=True):
            files.append(directory / f"{self.data.predict_source.name(index)}.png")
            save_image(files[-1], image.reshape(1, self._size, self._size))
        return files
