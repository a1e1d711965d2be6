"""Weights and figures that are not finite are noticed, said, and never kept."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from bad_numbers import SOLVER, TRAINING, NotANumber, Wrong, quiet, trained
from deqopt import Equilibrium, JointModule
from deqopt.callbacks import RunCheckpoint
from deqopt.errors import NonFiniteError
from deqopt.optimization import Optimization
from hooks import On, ran
from tiny_task import STATE, Batch, Tiny

pytestmark = TRAINING


class Outer(Tiny):
    """An outer loss through a head of its own, that the solve does not know: it goes on as if nothing were."""

    def __init__(self, samples: int = 8, batch_size: int = 4) -> None:
        super().__init__(samples=samples, batch_size=batch_size)
        self.outer = torch.nn.Linear(STATE, 1)

    def loss(self, equilibrium: Equilibrium, batch: Batch) -> Tensor:
        assert isinstance(equilibrium.z, Tensor)
        return equilibrium.objective + self.outer(equilibrium.z.detach()).square().sum(1)


@quiet
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_weights_that_become_nan_end_the_run_and_are_never_kept(tmp_path: Path, batch: int) -> None:
    """Within an epoch of two batches, before validation, in the last epoch; last.ckpt stays the last good one."""
    task = Outer()

    def spoil(trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == batch:
            task.outer.weight.data.view(-1)[0] = torch.nan

    pattern = rf"task\.outer\.weight holds NaN .* at training step {batch + 1}: the weights have diverged\."
    callbacks = On(on_train_batch_end=spoil), RunCheckpoint()
    with pytest.raises(NonFiniteError, match=pattern):
        ran(JointModule(task, solver=SOLVER), tmp_path, *callbacks, max_epochs=2, enable_checkpointing=True)
    for path in tmp_path.rglob("*.ckpt*"):
        kept = torch.load(path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in kept.values()), path
    assert bool(list(tmp_path.rglob("last.ckpt"))) == (batch > 1)


def test_an_exception_with_nan_weights_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    task = Tiny(samples=8, batch_size=4)

    def interrupt(trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            task.head.weight.data.fill_(torch.nan)
            raise KeyboardInterrupt

    callbacks = On(on_train_batch_start=interrupt), RunCheckpoint()
    with warnings.catch_warnings(), pytest.raises((KeyboardInterrupt, SystemExit, NonFiniteError)):
        warnings.filterwarnings("ignore", message=".*NaN or infinite")
        ran(JointModule(task, solver=SOLVER), tmp_path, *callbacks, max_epochs=3, enable_checkpointing=True)
    (path,) = tmp_path.rglob("last.ckpt")
    kept = torch.load(path, weights_only=True)
    assert kept["global_step"] == 2 and all(value.isfinite().all() for value in kept["state_dict"].values())


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_nan_weights_that_the_solve_does_not_meet_are_noticed_all_the_same(tmp_path: Path, stage: str) -> None:
    task = Outer()
    with torch.no_grad():
        task.outer.bias.fill_(torch.inf)
    with pytest.raises(NonFiniteError, match=r"^task\.outer\.bias holds NaN or infinite values at training step 0"):
        ran(JointModule(task), tmp_path, stage=stage, max_epochs=1)


def test_no_checkpoint_holds_nan_weights(tmp_path: Path) -> None:
    module, trainer = trained(tmp_path, Tiny(samples=4))
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    with torch.no_grad():
        module.task.head.weight[0, 0] = torch.nan  # type: ignore[union-attr, index, operator]
    with pytest.raises(NonFiniteError, match=r"task\.head\.weight"):
        trainer.save_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "bad.ckpt").exists()


class Evaluated(Wrong):
    """A loss that is NaN in evaluation alone, and a metric that is."""

    wrong = NotANumber.wrong

    def loss(self, equilibrium: Equilibrium, batch: Batch) -> Tensor:
        return equilibrium.objective if self.training else super().loss(equilibrium, batch)

    def outcome(self, equilibrium: Equilibrium, batch: Batch) -> tuple[Tensor, Tensor]:
        seen, target = super().outcome(equilibrium, batch)
        return seen if self.training else seen * math.nan, target


def test_figures_that_are_nan_are_said_once(tmp_path: Path) -> None:
    module = JointModule(Evaluated(samples=4, batch_size=4), solver=SOLVER)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ran(module, tmp_path, max_epochs=3)
    said = [str(one.message) for one in caught if "it says nothing" in str(one.message)]
    assert said == [
        "val/loss is nan at training step 1: it says nothing",
        "val/mse is nan at training step 1: it says nothing",
    ]


def test_ordinary_training_leaves_nothing_out(tmp_path: Path) -> None:
    for lr in (1e-3, 0.1):
        module, _ = trained(tmp_path, Tiny(samples=12, batch_size=4), max_epochs=20, optimization=Optimization(lr=lr))
        assert (module.guard.skipped, module.guard.left_out, module.guard.diverged) == (0, 0, 0)
