"""A task of three layers and no images, small enough to be solved and differentiated by hand: see :class:`Tiny`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanSquaredError, Metric

from deqopt import Equilibrium, JointProblem, Task

STATE, INPUT, OUTPUT = 5, 3, 4
WEIGHT_OF_X = 0.1
Batch = dict[str, Tensor]


class Cell(nn.Module):
    """``tanh(A z + U x + b)`` with ``|A| = gain`` at the start."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.state = nn.Linear(STATE, STATE, bias=False)
        self.input = nn.Linear(INPUT, STATE)
        with torch.no_grad():
            self.state.weight.mul_(gain / torch.linalg.matrix_norm(self.state.weight, 2))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.state(z) + self.input(x))


class Targets(LightningDataModule):
    """Batches ``{"y": (B, OUTPUT), "index": (B,)}``, in order; train, val, test and predict see the same samples."""

    def __init__(self, y: Tensor, batch_size: int) -> None:
        super().__init__()
        self._samples = [{"y": row, "index": torch.tensor(index)} for index, row in enumerate(y)]
        self._batch_size = batch_size

    def batches(self) -> DataLoader[Batch]:
        return DataLoader(self._samples, batch_size=self._batch_size)  # type: ignore[arg-type]

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = batches


class Tiny(Task):
    """``z = tanh(A z + U x + b)`` and ``J = |C z - y|^2 + WEIGHT_OF_X |x|^2``, with A, U, b and C learned.

    Args:
        samples: how many targets.
        batch_size: samples a batch.
        gain: spectral norm of A.
        spoiled: targets that are NaN.
    """

    def __init__(self, samples: int = 10, batch_size: int = 4, gain: float = 0.5, spoiled: Sequence[int] = ()) -> None:
        super().__init__()
        self.cell = Cell(gain)
        self.head = nn.Linear(STATE, OUTPUT, bias=False)
        self.y = torch.randn(samples, OUTPUT, generator=torch.Generator().manual_seed(1))
        self.y[list(spoiled)] = torch.nan
        self._batch_size = batch_size

    def datamodule(self) -> Targets:
        return Targets(self.y, self._batch_size)

    def batch(self, *rows: int) -> Batch:
        """Some of the samples, by default all."""
        index = torch.tensor(rows or range(len(self.y)))
        return {"y": self.y[index], "index": index}

    def start(self, batch: Batch) -> tuple[Tensor, Tensor]:
        y = batch["y"]
        return y.new_zeros(len(y), STATE), y.new_zeros(len(y), INPUT)

    def problem(self, batch: Batch) -> JointProblem:
        return JointProblem(self._f, self._objective, data=batch["y"])

    def _f(self, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.cell(z, x)

    def _objective(self, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return (self.head(z) - y).square().sum(1) + WEIGHT_OF_X * x.square().sum(1)

    def metrics(self) -> Mapping[str, Metric]:
        return {"mse": MeanSquaredError()}

    def outcome(self, equilibrium: Equilibrium, batch: Batch) -> tuple[Tensor, Tensor]:
        assert isinstance(equilibrium.z, Tensor)
        return self.head(equilibrium.z), batch["y"]

    def write_predictions(self, equilibrium: Equilibrium, batch: Batch, directory: Path) -> list[Path]:
        path = directory / f"{int(batch['index'][0])}.pt"
        torch.save(equilibrium.x, path)
        return [path]


def quiet_trainer(directory: Path, **settings: Any) -> Trainer:
    """A trainer on one CPU that writes nothing and says nothing, unless ``settings`` ask for it."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "default_root_dir": directory,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "inference_mode": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**{**quiet, **settings})
