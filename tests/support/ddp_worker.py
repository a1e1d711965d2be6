"""Trains and validates the tiny task on as many processes as asked: ``python ddp_worker.py DEVICES BATCH_SIZE OUT``.

In a script of its own, because Lightning starts the other processes by running the first one's script again.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from deqopt import JointModule
from deqopt.callbacks import FigureWriter, PredictionWriter
from deqopt.optimization import Algorithm, Optimization
from deqopt.solvers import Tracking
from tiny_task import Tiny, quiet_trainer

# All in one step, because Lightning shuffles the samples of several processes.
SAMPLES, STEPS = 8, 3
UNEVEN = 9


class Gradients(Callback):
    """Those that the optimiser sees, in every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.steps.append({name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None})


def train(directory: Path, devices: int, batch_size: int) -> dict[str, Any]:
    """Gradients of all steps, the weights after them, and the figures of validation."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    task, gradients = Tiny(samples=SAMPLES, batch_size=batch_size), Gradients()
    module = JointModule(
        task,
        solver=Tracking(max_nfe=20, step_size=0.5),
        optimization=Optimization(Algorithm.SGD, lr=0.1),
    )
    trainer = quiet_trainer(
        directory,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_steps=STEPS,
        callbacks=[gradients, FigureWriter(), PredictionWriter()],
    )
    trainer.fit(module, datamodule=task.datamodule())
    (figures,) = trainer.validate(module, datamodule=task.datamodule(), verbose=False)
    uneven = Tiny(samples=UNEVEN, batch_size=batch_size).datamodule()
    trainer.predict(module, datamodule=uneven, return_predictions=False)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    return {"gradients": gradients.steps, "weights": weights, "figures": figures, "rank": trainer.global_rank}


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    devices, batch_size, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    result = train(out, devices, batch_size)
    torch.save(result, out / f"rank_{result['rank']}.pt")
