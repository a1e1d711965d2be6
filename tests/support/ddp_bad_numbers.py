"""Trains the tiny task on two processes, of which the second meets bad numbers: ``python ddp_bad_numbers.py OUT``.

In a script of its own, because Lightning starts the other processes by running the first one's script again.
"""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from deqopt import Equilibrium, JointModule
from deqopt.errors import NonFiniteError
from deqopt.optimization import Algorithm, Optimization
from deqopt.solvers import Tracking
from tiny_task import Batch, Tiny, quiet_trainer

STEPS = 5
DATA, LOSS, GRADIENT, BOTH = 1, 2, 3, 4
"""The steps in which the second process, and at last the first one too, has nothing but bad numbers."""


class Bad(Tiny):
    """The step and the process decide what is wrong."""

    step = 0
    rank = 0
    forever = False

    def bad(self, kind: int) -> bool:
        return (self.rank == 1 and self.step == kind) or self.step == BOTH

    def loss(self, equilibrium: Equilibrium, batch: Batch) -> Tensor:
        rows = super().loss(equilibrium, batch)
        if self.forever or (self.rank == 1 and self.step == GRADIENT):
            return _Spoiled.apply(rows)  # type: ignore[no-any-return]
        return rows * math.nan if self.bad(LOSS) else rows


class _Spoiled(torch.autograd.Function):
    """Finite, and without a finite gradient: an adjoint leaves that out, a parameter of the loss would not."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return rows.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return cotangent * math.nan


class Watch(Callback):
    """Puts bad data into a batch, and keeps the weights after every step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        task = pl_module.task
        assert isinstance(task, Bad)
        task.step, task.rank = trainer.global_step, trainer.global_rank
        if task.bad(DATA):
            batch["y"].fill_(math.nan)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.weights.append({name: one.detach().clone() for name, one in pl_module.named_parameters()})


def train(directory: Path, forever: bool) -> dict[str, Any]:
    """What happened, and how it ended."""
    torch.manual_seed(0)
    task, watch = Bad(samples=8, batch_size=4), Watch()
    task.forever = forever
    module = JointModule(
        task,
        solver=Tracking(max_nfe=20, step_size=0.5),
        optimization=Optimization(Algorithm.ADAM, lr=0.1, max_skipped=2),
    )
    trainer = quiet_trainer(directory, devices=2, strategy="ddp", max_steps=STEPS, callbacks=[watch])
    error = ""
    try:
        trainer.fit(module, train_dataloaders=task.datamodule().batches())
    except NonFiniteError as found:
        error = str(found)
    guard = module.guard.state_dict()
    return {"rank": trainer.global_rank, "error": error, "guard": guard, "weights": watch.weights}


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    out = Path(sys.argv[1])
    results = [train(out, forever) for forever in (False, True)]
    torch.save(results, out / f"rank_{results[0]['rank']}.pt")
