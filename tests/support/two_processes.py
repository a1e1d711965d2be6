"""All that is tested on two processes, in one start of these: ``python two_processes.py OUT`` writes ``rank_N.pt``.

In a script of its own, because Lightning starts the other process by running the first one's script again.
"""

from __future__ import annotations

import errno
import math
import os
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from compared import Compared
from deqopt import Equilibrium, JointModule
from deqopt.callbacks import FigureWriter, PredictionWriter, RunCheckpoint
from deqopt.checkpoints import plugin, write
from deqopt.checkpoints.plugin import VerifiedCheckpointIO
from deqopt.errors import CheckpointError, DeqoptError, NonFiniteError
from deqopt.optimization import Algorithm, Optimization
from deqopt.solvers import Tracking
from deqopt.testing.resuming import Moment, differences
from deqopt.testing.resuming import trained as resumable
from hooks import On, gradients_of
from tiny_pictures import Quick, TinyPictures
from tiny_task import Batch, Tiny, quiet_trainer

RANK = int(os.environ.get("LOCAL_RANK", 0))


def both() -> dict[str, Any]:
    """Settings of a trainer on two processes that do not wait for each other for ever."""
    return {"devices": 2, "strategy": DDPStrategy(timeout=timedelta(seconds=60))}


def ended(run: Callable[[], object], kind: type[DeqoptError]) -> str:
    """The error that ended a run, empty where there was none."""
    try:
        run()
    except kind as error:
        return str(error)
    return ""


# -- the same steps as one process ------------------------------------------------------------------------------------

SAMPLES, STEPS, UNEVEN = 8, 3, 9
"""All samples in one step, because Lightning shuffles those of several processes."""


def train(directory: Path, batch_size: int, **devices: Any) -> dict[str, Any]:
    """Gradients of all steps, the weights after them, and the figures of validation."""
    torch.manual_seed(0)
    task, seen = Tiny(samples=SAMPLES, batch_size=batch_size), list[dict[str, Tensor]]()
    optimization = Optimization(Algorithm.SGD, lr=0.1)
    module = JointModule(task, solver=Tracking(max_nfe=20, step_size=0.5), optimization=optimization)
    note = On(on_before_optimizer_step=lambda trainer, module, *_: seen.append(gradients_of(module)))
    trainer = quiet_trainer(directory, max_steps=STEPS, callbacks=[note, FigureWriter(), PredictionWriter()], **devices)
    trainer.fit(module, datamodule=task.datamodule())
    (figures,) = trainer.validate(module, datamodule=task.datamodule(), verbose=False)
    uneven = Tiny(samples=UNEVEN, batch_size=batch_size).datamodule()
    trainer.predict(module, datamodule=uneven, return_predictions=False)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    return {"gradients": seen, "weights": weights, "figures": figures}


# -- going on ---------------------------------------------------------------------------------------------------------


def resume(directory: Path) -> dict[str, Any]:
    """Where resumed runs differ, for two checkpoints, and whether the processes drew differently."""

    def quick() -> Quick:
        torch.rand(RANK)
        return Quick(TinyPictures())

    def run(**more: Any) -> Any:
        epochs = {"max_epochs": 2, "limit_train_batches": 4, "limit_val_batches": 1, "accumulate_grad_batches": 2}
        return resumable(quick, directory, val_check_interval=3, **epochs, **both(), **more)

    whole = run(moments=[Moment.BATCH_END, Moment.VALIDATION_END])
    found = []
    for saved in whole.checkpoints[2:4]:
        torch.distributed.barrier()
        found.append(differences(whole, run(checkpoint=saved.path), saved))
    kept = torch.load(whole.checkpoints[2].path, weights_only=True)["resume"]["processes"]
    return {"found": found, "apart": not torch.equal(*(one["generators"]["torch"] for one in kept))}


# -- comparing methods ------------------------------------------------------------------------------------------------

SHARED: dict[str, dict[str, Any]] = {"all": {"samples": 5, "batch_size": 2}, "most": {"samples": 12, "most": 7}}


def compared(directory: Path, name: str, **settings: Any) -> dict[str, float]:
    torch.manual_seed(0)
    return Compared(**SHARED[name]).tested(directory, **settings)


# -- bad numbers ------------------------------------------------------------------------------------------------------

BAD_STEPS = 5
DATA, LOSS, GRADIENT, BOTH = 1, 2, 3, 4
"""The steps in which the second process, and at last the first one too, has nothing but bad numbers."""


class Bad(Tiny):
    """The step and the process decide what is wrong."""

    step = 0
    forever = False

    def bad(self, kind: int) -> bool:
        return (RANK == 1 and self.step == kind) or self.step == BOTH

    def loss(self, equilibrium: Equilibrium, batch: Batch) -> Tensor:
        rows = super().loss(equilibrium, batch)
        if self.forever or (RANK == 1 and self.step == GRADIENT):
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


def bad(directory: Path, forever: bool) -> dict[str, Any]:
    """What happened, and how it ended."""
    torch.manual_seed(0)
    task, weights = Bad(samples=8, batch_size=4), list[dict[str, Tensor]]()
    task.forever = forever

    def spoil(trainer: Trainer, module: LightningModule, batch: Batch, *_: Any) -> None:
        task.step = trainer.global_step
        if task.bad(DATA):
            batch["y"].fill_(math.nan)

    def keep(trainer: Trainer, module: LightningModule, *_: Any) -> None:
        weights.append({name: one.detach().clone() for name, one in module.named_parameters()})

    optimization = Optimization(Algorithm.ADAM, lr=0.1, max_skipped=2)
    module = JointModule(task, solver=Tracking(max_nfe=20, step_size=0.5), optimization=optimization)
    watch = On(on_train_batch_start=spoil, on_train_batch_end=keep)
    trainer = quiet_trainer(directory, max_steps=BAD_STEPS, callbacks=[watch], **both())
    error = ended(lambda: trainer.fit(module, train_dataloaders=task.datamodule().batches()), NonFiniteError)
    return {"error": error, "guard": module.guard.state_dict(), "weights": weights}


# -- a full disk ------------------------------------------------------------------------------------------------------

FULL = (2, 4)
"""The steps at which the disk is full: there the run goes on, and at its end."""


def full_disk(directory: Path) -> str:
    """Train four steps in two epochs."""

    def attempt(content: dict[str, Any], path: Path) -> None:
        if content["global_step"] in FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(content, path)

    torch.manual_seed(0)
    module = JointModule(Tiny(8, 2), Tracking(max_nfe=6, step_size=0.3))
    keeping = {"callbacks": [RunCheckpoint(every_n_minutes=1e-9)], "plugins": [VerifiedCheckpointIO()]}
    trainer = quiet_trainer(directory, enable_checkpointing=True, max_epochs=2, **keeping, **both())
    plugin.write = attempt  # type: ignore[attr-defined]
    try:
        return ended(lambda: trainer.fit(module, datamodule=module.task.datamodule()), CheckpointError)
    finally:
        plugin.write = write  # type: ignore[attr-defined]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    results = {
        "trained": train(out / "trained", 4, **both()),
        "resumed": resume(out),
        **{name: compared(out / name, name, logger=True, **both()) for name in SHARED},
        "bad": bad(out, forever=False),
        "full disk": full_disk(out / "full"),
        "bad for ever": bad(out, forever=True),
    }
    torch.save(results, out / f"rank_{RANK}.pt")
