"""Callbacks made of functions, and runs of the tiny task with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from deqopt import JointModule
from tiny_task import quiet_trainer


class On(Callback):
    """Calls functions at hooks, with all that these are given: ``On(on_train_start=lambda trainer, *_: ...)``."""

    def __init__(self, **functions: Callable[..., object]) -> None:
        for hook, function in functions.items():
            assert hasattr(Callback, hook), hook
            setattr(self, hook, function)


def gradients_of(module: LightningModule) -> dict[str, Tensor]:
    """Copies of those that there are, by the name of the parameter."""
    return {name: one.grad.clone() for name, one in module.named_parameters() if one.grad is not None}


def ran(module: JointModule, directory: Path, *callbacks: Callback, stage: str = "fit", **settings: Any) -> Trainer:
    """A trainer that has done this with the data of the module's task."""
    trainer = quiet_trainer(directory, callbacks=list(callbacks), **settings)
    getattr(trainer, stage)(module, datamodule=module.task.datamodule())
    return trainer
