"""Episodes without a network: a joint problem that is solved by hand, and guesses that the images themselves hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from deqopt_tasks.omniglot.episodes import EpisodeBatch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deqopt import JointProblem, Task

START, END = 1.0, 0.2
"""The inner objective of an episode with target 1 at ``x = 0`` and at the optimum, ``x = 2/5`` and ``z = 4/5``."""


class Rows(Dataset[EpisodeBatch]):
    """Rows of an `EpisodeBatch`."""

    def __init__(self, rows: Sequence[EpisodeBatch]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> EpisodeBatch:
        return self._rows[place]


class TinyEpisodes(Task):
    """``z = z / 2 + x`` and ``J = |z - 1|^2 + |x|^2`` for every episode, whatever its images.

    Args:
        rows: the episodes of test and predict.
        batch_size: episodes a batch.
    """

    def __init__(self, rows: Dataset[EpisodeBatch], batch_size: int = 1) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5))
        self.rows, self.batch_size = rows, batch_size

    def datamodule(self) -> LightningDataModule:
        data = LightningDataModule()
        data.test_dataloader = data.predict_dataloader = lambda: DataLoader(self.rows, batch_size=self.batch_size)  # type: ignore[method-assign]
        return data

    def start(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(len(batch.index), 1)
        return zeros, zeros.clone()

    def problem(self, batch: EpisodeBatch) -> JointProblem:
        return JointProblem(self._f, self._objective, data=torch.ones(len(batch.index), 1))

    def _f(self, z: Tensor, x: Tensor, target: Tensor) -> Tensor:
        return self.scale * z + x

    def _objective(self, z: Tensor, x: Tensor, target: Tensor) -> Tensor:
        return (z - target).square().sum(1) + x.square().sum(1)
