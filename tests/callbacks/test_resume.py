"""A run that is resumed is the run that was never interrupted, bit for bit; and what changes it is said or refused."""

from __future__ import annotations

import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deqopt_tasks.celeba.task import CelebA
from deqopt_tasks.cifar.losses import Trades
from deqopt_tasks.cifar.task import Cifar
from deqopt_tasks.denoising.restorer import Restorer
from deqopt_tasks.denoising.task import Denoising
from deqopt_tasks.omniglot.task import Omniglot
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from deqopt import JointModule
from deqopt.adjoints import Envelope, Implicit, InputHeld, JacobianFree, Phantom, Unrolled
from deqopt.data import EpochLoader, ImageDataModule, ImageSource, open_images
from deqopt.errors import CheckpointError
from deqopt.generators import generator_states, set_generator_states
from deqopt.optimization import Algorithm, Optimization, Schedule
from deqopt.regularizers import JacobianPenalty, SpectralPenalty
from deqopt.solvers import JointAnderson, SecantTracking, StepRule, Tracking
from deqopt.testing.resuming import Moment, Run, Saved, differences, trained
from paths import SUPPORT
from tiny_pictures import Quick, TinyPictures

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    # Since Python 3.12, forking a process that has threads (PyTorch's own) warns.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

JACOBIAN, SPECTRAL = JacobianPenalty(weight=0.1, visits=1), SpectralPenalty(weight=0.1)


def tiny(adjoint: Any) -> JointModule:
    solver = Tracking(max_nfe=6, step_size=0.5)
    return JointModule(TinyPictures(), solver, adjoint, [JACOBIAN])


def quick(optimization: Optimization | None = None, **settings: Any) -> Quick:
    return Quick(TinyPictures(**settings), optimization=optimization)


def whole_run(module: Callable[[], JointModule], directory: Path, **settings: Any) -> Run:
    return trained(module, directory, moments=list(Moment), **settings)


def unequal(module: Callable[[], JointModule], whole: Run, saved: Saved, directory: Path, **settings: Any) -> list[str]:
    return differences(whole, trained(module, directory, checkpoint=saved.path, **settings), saved)


# -- the moment of the interruption -----------------------------------------------------------------------------------

EPOCH = {"limit_train_batches": 3, "limit_val_batches": 2}
TRAINERS: dict[str, dict[str, Any]] = {
    "validation after every epoch": {"max_epochs": 2, **EPOCH},
    "sanity check": {"max_epochs": 1, "num_sanity_val_steps": 1, **EPOCH},
    "validation within an epoch": {"max_epochs": 2, **EPOCH, "val_check_interval": 2},
    "validation every other epoch": {"max_epochs": 3, **EPOCH, "check_val_every_n_epoch": 2},
    "validation every few batches": {
        "max_epochs": 2,
        **EPOCH,
        "check_val_every_n_epoch": None,
        "val_check_interval": 4,
    },
    "no validation": {"max_epochs": 2, **EPOCH, "limit_val_batches": 0},
    "steps": {"max_steps": 5, **EPOCH},
    "steps to the end of an epoch": {"max_steps": 6, **EPOCH},
    "accumulated": {"max_epochs": 2, **EPOCH, "limit_train_batches": 5, "accumulate_grad_batches": 2},
    "accumulated over validation": {
        "max_epochs": 1,
        **EPOCH,
        "limit_train_batches": 5,
        "accumulate_grad_batches": 2,
        "val_check_interval": 3,
    },
    "clipped": {"max_epochs": 1, **EPOCH, "gradient_clip_val": 0.01},
}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_run_goes_on_as_it_would_have_from_every_moment(trainer: str, tmp_path: Path) -> None:
    settings = TRAINERS[trainer]
    whole = whole_run(quick, tmp_path, **settings)
    assert len({saved.step for saved in whole.checkpoints}) >= 3
    for saved in whole.checkpoints:
        assert unequal(quick, whole, saved, tmp_path, **settings) == [], saved


def test_writing_checkpoints_changes_nothing(tmp_path: Path) -> None:
    settings = TRAINERS["accumulated over validation"]
    whole, plain = whole_run(quick, tmp_path, **settings), trained(quick, tmp_path, **settings)
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

    def module(self, penalty: Any) -> JointModule:
        return JointModule(self.task(self.workers), regularizers=[penalty], **self.parts)


SMALL = {"size": 8, "image_channels": 1, "resolution": 4}
CASES = {
    "celeba": Case(
        lambda workers: CelebA(batch_size=8, latent=4, widths=[4, 4], workers=workers, **SMALL),
        {"solver": Tracking(max_nfe=6, step_size=2.0)},
    ),
    "cifar": Case(
        lambda workers: Cifar(
            batch_size=8, widths=[8], radius=1.2, attacks=[], shift=1, flip=True, workers=workers, **SMALL
        ),
        {"solver": SecantTracking(max_nfe=6)},
        workers=1,
    ),
    "cifar, trades": Case(
        lambda workers: Cifar(
            batch_size=4, widths=[8], radius=1.2, attacks=[], loss=Trades(), workers=workers, **SMALL
        ),
        {"solver": SecantTracking(max_nfe=6)},
    ),
    "denoising": Case(
        lambda workers: Denoising(
            size=8, image_channels=1, batch_size=8, prior=Restorer(widths=[8]), workers=workers, flip=True
        )
    ),
    "omniglot": Case(
        lambda workers: Omniglot(
            size=8,
            image_channels=1,
            ways=3,
            queries=1,
            batch_size=2,
            val_episodes=4,
            widths=[16],
            context=4,
            features=8,
            distort_images=0.5,
            workers=workers,
        ),
        {
            "solver": JointAnderson(max_nfe=8, step_size=1.0, step_rule=StepRule.PLAIN, history_size=5),
            "adjoint": Implicit(tol=0.25, max_nfe=30),
        },
    ),
}


@pytest.mark.parametrize("penalty", [JACOBIAN, SPECTRAL], ids=lambda penalty: penalty.name)
@pytest.mark.parametrize("name", CASES)
def test_every_task_goes_on_as_it_would_have(name: str, penalty: Any, tmp_path: Path) -> None:
    case, settings = CASES[name], {"max_epochs": 2, "limit_train_batches": 2, "limit_val_batches": 1}
    module = lambda: case.module(penalty)  # noqa: E731
    whole = whole_run(module, tmp_path, **settings)
    chosen = {(Moment.BATCH_END, 1), (Moment.VALIDATION_BATCH_END, 2), (Moment.BACKWARD_END, 2)}
    found = [saved for saved in whole.checkpoints if (saved.moment, saved.step) in chosen]
    assert len(found) == 3
    for saved in found:
        assert unequal(module, whole, saved, tmp_path, **settings) == [], saved


@pytest.mark.parametrize(
    "adjoint",
    [Envelope(), Implicit(), InputHeld(), JacobianFree(), Phantom(), Unrolled()],
    ids=lambda adjoint: type(adjoint).__name__,
)
def test_every_adjoint_goes_on_as_it_would_have(adjoint: Any, tmp_path: Path) -> None:
    module, settings = lambda: tiny(adjoint), {"max_epochs": 1, **EPOCH}
    whole = trained(module, tmp_path, moments=[Moment.BATCH_END], **settings)
    assert unequal(module, whole, whole.checkpoints[1], tmp_path, **settings) == []


DECAYING = Optimization(
    "torch.optim.RMSprop", 0.1, 0.01, "torch.optim.lr_scheduler.ExponentialLR", schedule_args={"gamma": 0.5}
)
OPTIMIZATIONS = [*(Optimization(one, 0.1, 0.01, plan) for one in Algorithm for plan in Schedule), DECAYING]


@pytest.mark.parametrize("optimization", OPTIMIZATIONS, ids=lambda one: f"{one.algorithm}-{one.schedule}")
def test_every_optimiser_goes_on_as_it_would_have(optimization: Optimization, tmp_path: Path) -> None:
    module, settings = lambda: quick(optimization), {"max_epochs": 1, **EPOCH}
    whole = trained(module, tmp_path, moments=[Moment.BATCH_END], **settings)
    assert unequal(module, whole, whole.checkpoints[1], tmp_path, **settings) == []


@pytest.mark.slow
def test_two_processes_go_on_each_with_its_own_random_numbers(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PL_GLOBAL_SEED", None)  # left by another test, Lightning would seed both processes alike with it
    command = [sys.executable, str(SUPPORT / "ddp_resume.py"), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        result = torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True)
        assert result["apart"] and len(result["found"]) == 2
        assert not any(result["found"].values()), result["found"]


# -- other settings ---------------------------------------------------------------------------------------------------

SIX = {"max_epochs": 2, **EPOCH}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Checkpoints of a run by Adam and a cosine schedule of six steps, by step; written at the end of a batch."""
    directory = tmp_path_factory.mktemp("interrupted")
    whole = trained(quick, directory, moments=[Moment.BATCH_END], **SIX)
    return {saved.step: saved.path for saved in whole.checkpoints}


class Rates(Callback):
    """The learning rate and weight decay of every step."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        group = optimizer.param_groups[0]
        self.seen.append((group["lr"], group["weight_decay"]))


def rates(directory: Path, optimization: Optimization, checkpoint: Path | None, **settings: Any) -> Any:
    seen = Rates()
    trained(lambda: quick(optimization), directory, checkpoint=checkpoint, callbacks=[seen], **settings)
    return seen.seen


CHANGED = {
    "learning rate": (Optimization(lr=0.5), {}),
    "weight decay": (Optimization(weight_decay=0.25), {}),
    "schedule by class": (replace(DECAYING, algorithm=Algorithm.ADAM), {}),
    "constant schedule": (Optimization(schedule=Schedule.CONSTANT), {}),
    "one cycle": (Optimization(lr=0.5, schedule=Schedule.ONE_CYCLE), {}),
    "longer": (Optimization(), {"max_epochs": 4}),
    "longer one cycle": (Optimization(schedule=Schedule.ONE_CYCLE), {"max_epochs": 4}),
}


@pytest.mark.parametrize("step", [2, 3, 5])
@pytest.mark.parametrize("case", CHANGED)
def test_a_changed_setting_of_the_optimiser_is_applied_as_if_from_the_beginning(
    case: str, step: int, interrupted: dict[int, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    optimization, more = CHANGED[case]
    settings = {**SIX, **more}
    rest = rates(tmp_path, optimization, interrupted[step], **settings)
    assert f"From step {step} on: " in caplog.text
    assert rest == rates(tmp_path, optimization, None, **settings)[step:] and len(rest) >= 1


def test_a_longer_cosine_schedule_is_that_of_the_longer_run(interrupted: dict[int, Path], tmp_path: Path) -> None:
    found = rates(tmp_path, Optimization(), interrupted[3], **{**SIX, "max_epochs": 4})
    assert [lr for lr, _ in found] == pytest.approx([5e-4 * (1 + math.cos(math.pi * t / 12)) for t in range(3, 12)])


TRAINER_CHANGED = {
    "accumulation": ({"accumulate_grad_batches": 2}, r"accumulate_grad_batches 2 \(before: 1\)"),
    "clipping": ({"gradient_clip_val": 0.5}, r"gradient_clip_val 0\.5 \(before: None\)"),
    "precision": ({"precision": "bf16-mixed"}, r"precision bf16-mixed \(before: 32-true\)"),
}


@pytest.mark.parametrize("case", TRAINER_CHANGED)
def test_a_changed_setting_of_the_trainer_is_applied_and_said(
    case: str, interrupted: dict[int, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings, said = TRAINER_CHANGED[case]
    trained(quick, tmp_path, checkpoint=interrupted[2], **{**SIX, **settings})
    assert re.search(f"goes on with other settings of the trainer: {said}", caplog.text)


def test_nothing_is_said_where_nothing_is_changed(
    interrupted: dict[int, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(quick, tmp_path, checkpoint=interrupted[2], **SIX)
    assert "From step" not in caplog.text and "other settings" not in caplog.text


@pytest.mark.parametrize("algorithm", [Algorithm.ADAMW, Algorithm.SGD])
def test_another_algorithm_is_refused(algorithm: Algorithm, interrupted: dict[int, Path], tmp_path: Path) -> None:
    message = rf"state of the optimiser ADAM, and optimization.algorithm is {algorithm.name}: go on with ADAM, or"
    with pytest.raises(CheckpointError, match=message):
        trained(lambda: quick(Optimization(algorithm)), tmp_path, checkpoint=interrupted[2], **SIX)


@pytest.mark.parametrize("batch_size", [4, 16])
def test_other_batches_are_refused_within_an_epoch(
    batch_size: int, interrupted: dict[int, Path], tmp_path: Path
) -> None:
    module = lambda: quick(batch_size=batch_size)  # noqa: E731
    message = rf"after 2 batches, and its epoch has \d+ batches of 8 from .* now .* batches of {batch_size} from"
    with pytest.raises(CheckpointError, match=message):
        trained(module, tmp_path, checkpoint=interrupted[2], **SIX)


def test_other_batches_are_used_from_the_next_epoch_on(tmp_path: Path) -> None:
    whole = trained(quick, tmp_path, moments=[Moment.EPOCH_END], **SIX)
    rest = trained(lambda: quick(batch_size=4), tmp_path, checkpoint=whole.checkpoints[0].path, **SIX)
    assert [step for step, row in rest.rows if "train/loss" in row] == [3, 4, 5]


def test_an_epoch_cannot_become_shorter_than_what_is_done_of_it(interrupted: dict[int, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"written after 2 batches of an epoch, and now an epoch has 1: "):
        trained(quick, tmp_path, checkpoint=interrupted[2], **{**SIX, "limit_train_batches": 1})


def test_the_seed_of_the_order_is_that_of_the_beginning(
    interrupted: dict[int, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(quick, tmp_path, seed=6, checkpoint=interrupted[2], **SIX)
    assert "goes on with the seed that it began with, 0, not with 7" in caplog.text


def test_a_checkpoint_without_a_position_is_said_to_begin_another_run(
    interrupted: dict[int, Path], tmp_path: Path
) -> None:
    content = torch.load(interrupted[3], weights_only=True)
    del content["resume"]
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.warns(UserWarning, match="contains neither the position of the run in its epoch"):
        trained(quick, tmp_path, checkpoint=tmp_path / "old.ckpt", **SIX)


@pytest.mark.parametrize("change", [{"epochs": 1}, {"epoch": None}], ids=str)
def test_a_position_of_another_version_is_refused(
    change: dict[str, Any], interrupted: dict[int, Path], tmp_path: Path
) -> None:
    content = torch.load(interrupted[3], weights_only=True)
    position = {**content["resume"]["position"], **change}
    content["resume"]["position"] = {name: value for name, value in position.items() if value is not None}
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="in a format that this version of deqopt"):
        trained(quick, tmp_path, checkpoint=tmp_path / "other.ckpt", **SIX)


# -- the order and the loader -----------------------------------------------------------------------------------------


class Counted(ImageSource):
    """The digits, and which of them were asked for."""

    def __init__(self) -> None:
        super().__init__("digits", size=2, channels=1)
        self._digits, self.asked = open_images(None, size=2, channels=1), []

    def __len__(self) -> int:
        return 40

    def name(self, index: int) -> str:
        return str(index)

    def pixels(self, index: int) -> Any:
        self.asked.append(index)
        return self._digits.pixels(index)


def indices(loader: EpochLoader) -> list[list[int]]:
    return [batch.index.tolist() for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_the_rest_of_an_epoch_is_served_without_loading_the_beginning(first: int, workers: int) -> None:
    source = Counted()
    whole, rest = (ImageDataModule(lambda: source, batch_size=8, workers=workers).train_dataloader() for _ in range(2))
    epochs = [indices(whole) for _ in range(2)]
    source.asked.clear()
    rest.start_at(first)
    assert indices(rest) == epochs[0][first:]
    if not workers:
        assert source.asked == [index for batch in epochs[0][first:] for index in batch]
    assert indices(rest) == epochs[1] != epochs[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_draws_nothing_from_the_global_generators(workers: int) -> None:
    data = ImageDataModule(Counted, batch_size=8, workers=workers)
    before = generator_states(torch.device("cpu"))
    for loader in (data.train_dataloader(), data.val_dataloader(), data.predict_dataloader()):
        list(loader), list(loader)
    after = generator_states(torch.device("cpu"))
    assert torch.equal(before["torch"], after["torch"]) and before["python"] == after["python"]
    assert torch.equal(before["numpy"][1], after["numpy"][1]) and before["numpy"][2:] == after["numpy"][2:]


def test_the_order_comes_from_the_global_seed_and_the_epoch() -> None:
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        loader = ImageDataModule(Counted, batch_size=8).train_dataloader()
        torch.rand(seed + 1)
        orders.append([indices(loader) for _ in range(2)])
    assert orders[0] == orders[1] and orders[0] != orders[2] and orders[0][0] != orders[0][1]


def test_generators_are_put_back() -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.randn(()))]

    draw()
    states = generator_states(torch.device("cpu"))
    first = draw()
    draw()
    set_generator_states(states, torch.device("cpu"))
    assert draw() == first
