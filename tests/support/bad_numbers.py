"""Tasks and callbacks that bring numbers into training that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from command import column
from deqopt import Equilibrium, JointModule
from deqopt.optimization import Optimization
from deqopt.solvers import JointAnderson, Tracking
from hooks import gradients_of
from tiny_task import Batch, Tiny, quiet_trainer

TRAINING = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
"""Mark of tests that train without validation."""
quiet = pytest.mark.filterwarnings("ignore:.*(left out|is skipped|give no gradient|it says nothing)")

SOLVER = Tracking(max_nfe=16, step_size=0.5)
EXACT = JointAnderson(max_nfe=500, tol=1e-10, step_size=0.2)


class Wrong(Tiny):
    """The loss of one sample is what ``wrong`` makes of it and of the head's output."""

    wrong: ClassVar[Callable[[Tensor, Tensor], Tensor]]
    victim = 1

    def loss(self, equilibrium: Equilibrium, batch: Batch) -> Tensor:
        assert isinstance(equilibrium.z, Tensor)
        rows, bad = super().loss(equilibrium, batch), batch["index"] == self.victim
        spoiled = type(self).wrong(rows[bad], self.head(equilibrium.z.detach()[bad]).sum(1))
        return rows.index_copy(0, bad.nonzero()[:, 0], spoiled)


class Divided(Wrong):
    wrong = lambda loss, seen: loss / (0 * seen)  # noqa: E731


class Logarithm(Wrong):
    wrong = lambda loss, seen: loss + (0 * seen).log()  # noqa: E731


class NotANumber(Wrong):
    wrong = lambda loss, seen: loss + (seen - seen.abs() - 1).sqrt()  # noqa: E731


class Huge(Wrong):
    wrong = lambda loss, seen: 1e30 * (loss + seen.square())  # noqa: E731


class SpoiledStart(Tiny):
    """The start of one sample is NaN, whatever its data."""

    victim = 1

    def start(self, batch: Batch) -> tuple[Tensor, Tensor]:
        z0, x0 = super().start(batch)
        return z0.masked_fill((batch["index"] == self.victim)[:, None], torch.nan), x0


BAD: dict[str, type[Tiny]] = {one.__name__: one for one in (Divided, Logarithm, NotANumber, Huge, SpoiledStart)}


class Watch(Callback):
    """What the optimiser is given and leaves behind in every step."""

    def __init__(self, change: Callable[[int, Tensor], None] | None = None) -> None:
        self.change, self.gradients, self.states, self.weights = change, [], [], []  # type: ignore[var-annotated]

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for one in pl_module.parameters():
            if self.change is not None and one.grad is not None:
                self.change(trainer.fit_loop.total_batch_idx, one.grad)
        self.gradients.append(gradients_of(pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.states.append(deepcopy(trainer.optimizers[0].state_dict()["state"]))
        self.weights.append(deepcopy(pl_module.state_dict()))


def spoil(value: float, *batches: int) -> Callable[[int, Tensor], None]:
    """Multiplies the gradient of these batches."""

    def change(batch: int, gradient: Tensor) -> None:
        if batch in batches:
            gradient.mul_(value)

    return change


def trained(directory: Path, task: Tiny, *callbacks: Callback, **settings: Any) -> tuple[JointModule, Trainer]:
    parts = {name: settings.pop(name) for name in ("adjoint", "regularizers", "solver") if name in settings}
    optimization = settings.pop("optimization", Optimization(lr=0.01, max_skipped=3))
    module = JointModule(task, **{"solver": SOLVER, "optimization": optimization, **parts})
    trainer = quiet_trainer(directory, callbacks=list(callbacks), **{"max_epochs": 1, **settings})
    trainer.fit(module, train_dataloaders=task.datamodule().batches())
    return module, trainer


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(
        torch.equal(value, other[name]) if isinstance(value, Tensor) else same(value, other[name])
        for name, value in one.items()
    )


def rows_of(logger: CSVLogger, name: str) -> list[float]:
    return column(Path(logger.log_dir), name)
