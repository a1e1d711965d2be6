"""A run that is resumed is the run that was never interrupted, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from deqopt_tasks.celeba.task import CelebA
from deqopt_tasks.cifar.losses import Trades
from deqopt_tasks.cifar.task import Cifar
from deqopt_tasks.denoising.restorer import Restorer
from deqopt_tasks.denoising.task import Denoising
from deqopt_tasks.omniglot.task import Omniglot
from lightning.pytorch.callbacks import EarlyStopping

from deqopt import JointModule
from deqopt.adjoints import Envelope, Implicit, InputHeld, JacobianFree, Phantom, Unrolled
from deqopt.optimization import Algorithm, Optimization, Schedule
from deqopt.regularizers import JacobianPenalty, SpectralPenalty
from deqopt.solvers import JointAnderson, SecantTracking, StepRule, Tracking
from deqopt.testing.resuming import Moment, Run, Saved, differences, trained
from tiny_pictures import DECAYING, EPOCH, SIX, TinyPictures, quick

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")

PENALTIES = [JacobianPenalty(weight=0.1, visits=1), SpectralPenalty(weight=0.1)]


def unequal(module: Callable[[], JointModule], whole: Run, saved: Saved, directory: Path, **settings: Any) -> list[str]:
    return differences(whole, trained(module, directory, checkpoint=saved.path, **settings), saved)


# -- the moment of the interruption -----------------------------------------------------------------------------------

ACCUMULATED = {**EPOCH, "limit_train_batches": 5, "accumulate_grad_batches": 2}
TRAINERS: dict[str, dict[str, Any]] = {
    "validation after every epoch": SIX,
    "sanity check": {"max_epochs": 1, "num_sanity_val_steps": 1, **EPOCH},
    "validation within an epoch": {**SIX, "val_check_interval": 2},
    "validation every other epoch": {"max_epochs": 3, **EPOCH, "check_val_every_n_epoch": 2},
    "validation every few batches": {**SIX, "check_val_every_n_epoch": None, "val_check_interval": 4},
    "no validation": {**SIX, "limit_val_batches": 0},
    "steps": {"max_steps": 5, **EPOCH},
    "steps to the end of an epoch": {"max_steps": 6, **EPOCH},
    "accumulated": {"max_epochs": 2, **ACCUMULATED},
    "accumulated over validation": {"max_epochs": 1, **ACCUMULATED, "val_check_interval": 3},
    "clipped": {"max_epochs": 1, **EPOCH, "gradient_clip_val": 0.01},
}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_run_goes_on_as_it_would_have_from_every_moment(trainer: str, tmp_path: Path) -> None:
    settings = TRAINERS[trainer]
    whole = trained(quick, tmp_path, moments=list(Moment), **settings)
    assert len({saved.step for saved in whole.checkpoints}) >= 3
    for saved in whole.checkpoints:
        assert unequal(quick, whole, saved, tmp_path, **settings) == [], saved


def test_writing_checkpoints_changes_nothing(tmp_path: Path) -> None:
    settings = TRAINERS["accumulated over validation"]
    whole, plain = trained(quick, tmp_path, moments=list(Moment), **settings), trained(quick, tmp_path, **settings)
    assert differences(plain, whole, Saved(tmp_path, Moment.TRAIN_END, -1, 0)) == []


def test_the_comparison_sees_a_run_of_another_seed(tmp_path: Path) -> None:
    settings = TRAINERS["clipped"]
    one, other = (trained(quick, tmp_path, seed=seed, **settings) for seed in (0, 1))
    found = differences(one, other, Saved(tmp_path, Moment.TRAIN_END, -1, 0))
    assert any(text.startswith("state/weights/task.head") for text in found)
    assert any(text.startswith("rows/0/1/train/loss") for text in found)


def test_a_run_may_be_resumed_many_times(tmp_path: Path) -> None:
    settings = TRAINERS["validation within an epoch"]
    whole = trained(quick, tmp_path, **settings)
    path, rows = None, []
    for step in range(1, 6):
        run = trained(quick, tmp_path, checkpoint=path, moments=[Moment.BATCH_START], **settings)
        saved = next(one for one in run.checkpoints if one.step == step)
        rows += run.rows[: saved.logged]
        path = saved.path.rename(tmp_path / f"step {step}.ckpt")
    last = trained(quick, tmp_path, checkpoint=path, **settings)
    assert differences(whole, Run(last.state, rows + last.rows, []), Saved(tmp_path, Moment.TRAIN_END, -1, 0)) == []


def test_a_run_that_was_stopped_goes_on_in_its_epoch(tmp_path: Path) -> None:
    constant = Optimization(schedule=Schedule.CONSTANT)
    module = lambda: quick(constant)  # noqa: E731
    whole = trained(module, tmp_path, max_steps=8, **EPOCH)
    first = trained(module, tmp_path, max_steps=4, moments=[Moment.TRAIN_END], **EPOCH)
    rest = trained(module, tmp_path, checkpoint=first.checkpoints[-1].path, max_steps=8, **EPOCH)
    assert differences(whole, rest, first.checkpoints[-1]) == []


def test_early_stopping_sees_the_figures_from_before(tmp_path: Path) -> None:
    def run(checkpoint: Path | None = None) -> Run:
        stopping = EarlyStopping("val/loss", patience=1, mode="max", check_on_train_epoch_end=True)
        settings = {**EPOCH, "max_epochs": 4, "callbacks": [stopping], "moments": [Moment.VALIDATION_END]}
        return trained(quick, tmp_path, checkpoint=checkpoint, **settings)

    whole = run()
    copies = [saved.path.rename(tmp_path / f"copy {i}.ckpt") for i, saved in enumerate(whole.checkpoints)]
    for path, saved in zip(copies, whole.checkpoints, strict=True):
        assert differences(whole, run(path), saved) == []


# -- tasks, penalties and adjoints ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A task that trains.

    Args:
        task: makes it, for a number of workers.
        parts: those of the module but for penalties.
        workers: that load its data.
    """

    task: Callable[[int], Any]
    parts: dict[str, Any] = field(default_factory=dict)
    workers: int = 0

    def module(self) -> JointModule:
        return JointModule(self.task(self.workers), regularizers=PENALTIES, **self.parts)


SMALL: dict[str, Any] = {"size": 8, "image_channels": 1}
ATTACKED: dict[str, Any] = {**SMALL, "resolution": 4, "widths": [8], "radius": 1.2, "attacks": []}
EPISODES: dict[str, Any] = {"ways": 3, "queries": 1, "val_episodes": 4, "distort_images": 0.5}
EPISODES |= {"widths": [16], "context": 4, "features": 8}
EPISODE_SOLVER = JointAnderson(max_nfe=8, step_size=1.0, step_rule=StepRule.PLAIN, history_size=5)
CASES = {
    "celeba": Case(
        lambda workers: CelebA(batch_size=8, latent=4, widths=[4, 4], workers=workers, **SMALL, resolution=4),
        {"solver": Tracking(max_nfe=6, step_size=2.0)},
    ),
    "cifar": Case(
        lambda workers: Cifar(batch_size=8, shift=1, flip=True, workers=workers, **ATTACKED),
        {"solver": SecantTracking(max_nfe=6)},
        workers=1,
    ),
    "cifar, trades": Case(
        lambda workers: Cifar(batch_size=4, loss=Trades(), workers=workers, **ATTACKED),
        {"solver": SecantTracking(max_nfe=6)},
    ),
    "denoising": Case(
        lambda workers: Denoising(batch_size=8, prior=Restorer(widths=[8]), workers=workers, flip=True, **SMALL)
    ),
    "omniglot": Case(
        lambda workers: Omniglot(batch_size=2, workers=workers, **EPISODES, **SMALL),
        {"solver": EPISODE_SOLVER, "adjoint": Implicit(tol=0.25, max_nfe=30)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_task_goes_on_as_it_would_have(name: str, tmp_path: Path) -> None:
    module, settings = CASES[name].module, {"max_epochs": 2, "limit_train_batches": 2, "limit_val_batches": 1}
    whole = trained(module, tmp_path, moments=list(Moment), **settings)
    chosen = {(Moment.BATCH_END, 1), (Moment.VALIDATION_BATCH_END, 2), (Moment.BACKWARD_END, 2)}
    found = [saved for saved in whole.checkpoints if (saved.moment, saved.step) in chosen]
    assert len(found) == 3
    for saved in found:
        assert unequal(module, whole, saved, tmp_path, **settings) == [], saved


ADJOINTS = [Envelope(), Implicit(), InputHeld(), JacobianFree(), Phantom(), Unrolled()]


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda adjoint: type(adjoint).__name__)
def test_every_adjoint_goes_on_as_it_would_have(adjoint: Any, tmp_path: Path) -> None:
    def module() -> JointModule:
        return JointModule(TinyPictures(), Tracking(max_nfe=6, step_size=0.5), adjoint, PENALTIES[:1])

    goes_on_after_two_steps(module, tmp_path)


OPTIMIZATIONS = [*(Optimization(one, 0.1, 0.01, plan) for one in Algorithm for plan in Schedule), DECAYING]


@pytest.mark.parametrize("optimization", OPTIMIZATIONS, ids=lambda one: f"{one.algorithm}-{one.schedule}")
def test_every_optimiser_goes_on_as_it_would_have(optimization: Optimization, tmp_path: Path) -> None:
    goes_on_after_two_steps(lambda: quick(optimization), tmp_path)


def goes_on_after_two_steps(module: Callable[[], JointModule], directory: Path) -> None:
    settings = {"max_epochs": 1, **EPOCH}
    whole = trained(module, directory, moments=[Moment.BATCH_END], **settings)
    assert unequal(module, whole, whole.checkpoints[1], directory, **settings) == []
