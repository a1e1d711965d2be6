"""JointModule under a Trainer: gradients, bad batches, what is logged, checkpoints, settings that take effect."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from deqopt_tasks.celeba.task import CelebA
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from deqopt import Equilibrium, JointModule, JointProblem, Task
from deqopt.adjoints import Envelope
from deqopt.errors import NonFiniteError, ProblemError
from deqopt.optimization import Algorithm, Optimization, Schedule
from deqopt.regularizers import JacobianPenalty, Regularizer
from deqopt.solvers import JointAnderson, Tracking
from deqopt.state import tensors_of
from hooks import On, gradients_of, ran
from tiny_reference import best_x, objective, solved_z
from tiny_task import Tiny

EXACT = JointAnderson(max_nfe=500, tol=1e-10, step_size=0.2)
ROUGH = Tracking(max_nfe=4, step_size=0.5, settle=1)
STAGES = "fit", "validate", "test", "predict"
FIGURES = ("objective", "loss", "residual", "nfe", "converged")


@dataclass(frozen=True)
class Size(Regularizer):
    """``mean |f(z, x)|^2`` over all points that it is shown; it remembers how many those were."""

    name: ClassVar[str] = "size"
    weight: float = 0.3
    visits: int = 0
    seen: ClassVar[list[int]] = []

    def penalty(self, problem: JointProblem, equilibrium: Equilibrium) -> Tensor:
        points = ((equilibrium.z, equilibrium.x), *equilibrium.visited)
        self.seen.append(len(points))
        images = [tensors_of(problem.f(z, x))[0] for z, x in points]
        return torch.stack([image.square().sum(1).mean() for image in images]).mean()


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    Size.seen.clear()
    yield


def first_gradients(directory: Path, task: Task, **parts: Any) -> dict[str, Tensor]:
    """Those of the first training step, in float64."""
    seen: dict[str, Tensor] = {}
    note = On(on_after_backward=lambda trainer, module: seen.update(gradients_of(module)))
    ran(JointModule(task, **{"solver": EXACT, **parts}), directory, note, max_steps=1, precision="64-true")
    return seen


def same(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-7) -> bool:
    assert got.keys() == want.keys()
    return all(torch.allclose(got[name], want[name], rtol=tolerance, atol=tolerance) for name in got)


# -- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_training_gradient_is_that_of_the_optimal_value_and_the_penalties(tmp_path: Path, weight: float) -> None:
    """The reference unrolls the cell, minimises over x by another method and differentiates through the unrolling."""
    task = Tiny(batch_size=4)
    twin = deepcopy(task).double()
    got = first_gradients(tmp_path, task, regularizers=[Size(weight=weight)])

    y = twin.y[:4].double()
    x = best_x(twin, y)
    z = solved_z(twin, x)
    loss = objective(twin, z, x, y).mean() + weight * twin.cell(z.detach(), x).square().sum(1).mean()
    names = [f"task.{name}" for name, _ in twin.named_parameters()]
    want = dict(zip(names, torch.autograd.grad(loss, list(twin.parameters())), strict=True))
    assert same(got, want, 1e-6)


@dataclass(frozen=True)
class Halved(Envelope):
    """Half the gradient."""

    def attach(self, problem: JointProblem, equilibrium: Equilibrium) -> Equilibrium:
        full = super().attach(problem, equilibrium).objective
        return replace(equilibrium, objective=(full + full.detach()) / 2)


def test_the_chosen_adjoint_is_used(tmp_path: Path) -> None:
    task = Tiny()
    full = first_gradients(tmp_path, deepcopy(task))
    half = first_gradients(tmp_path, deepcopy(task), adjoint=Halved())
    assert same(half, {name: value / 2 for name, value in full.items()})


@pytest.mark.parametrize("visits", [0, 3])
def test_regularizers_see_as_many_iterates_as_they_ask_for(tmp_path: Path, visits: int) -> None:
    module = JointModule(Tiny(samples=8), solver=ROUGH, regularizers=[JacobianPenalty(), Size(visits=visits)])
    trainer = ran(module, tmp_path, max_epochs=1)
    assert Size.seen == [1 + visits] * 2
    assert {"train/jacobian", "train/size"} <= trainer.callback_metrics.keys()


# -- bad batches ------------------------------------------------------------------------------------------------------


def test_a_nan_sample_is_left_out_of_training(tmp_path: Path) -> None:
    task = Tiny(samples=4, batch_size=4, spoiled=[1])
    without = deepcopy(task)
    without.y = without.y[[0, 2, 3]]
    with pytest.warns(UserWarning, match="^1 of 4 samples of a batch hold NaN or infinite values: left out$"):
        got = first_gradients(tmp_path, task, regularizers=[Size()])
    assert same(got, first_gradients(tmp_path, without, regularizers=[Size()]))


@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_of_nan_is_an_error_about_the_data(tmp_path: Path, stage: str) -> None:
    module = JointModule(Tiny(samples=3, spoiled=[0, 1, 2]))
    told = pytest.warns(UserWarning, match="3 of 3 samples|no sample of the step") if stage == "fit" else nullcontext()
    pattern = r"^all 3 samples of a batch .* at training step 0: check the data"
    with told, pytest.raises(NonFiniteError, match=pattern):
        ran(module, tmp_path, stage=stage, max_epochs=1, limit_val_batches=0 if stage == "fit" else 1)


@pytest.mark.parametrize("stage", STAGES)
def test_nan_weights_are_an_error_about_the_weights(tmp_path: Path, stage: str) -> None:
    task = Tiny(samples=4)
    with torch.no_grad():
        task.cell.input.bias.fill_(math.nan)
        task.head.weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"^task\.\S+ holds NaN .* at training step 0: the weights have diverged"):
        ran(JointModule(task), tmp_path, stage=stage, max_epochs=1)


# -- the task celeba: what is logged ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def celeba_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """The figures that fit and each evaluation logged on a few images of noise."""
    directory = tmp_path_factory.mktemp("celeba")
    torch.manual_seed(0)
    np.savez(directory / "noise.npz", images=np.random.RandomState(0).randint(0, 256, (40, 16, 16), dtype=np.uint8))
    small = {"size": 16, "image_channels": 1, "batch_size": 8, "latent": 4, "widths": [4, 6], "components": 1}
    task = CelebA(str(directory / "noise.npz"), **small)  # type: ignore[arg-type]
    module = JointModule(task, solver=Tracking(max_nfe=6), regularizers=[JacobianPenalty(weight=0.1)])
    logged: dict[str, dict[str, float]] = {}
    for stage in ("fit", "validate", "test"):
        trainer = ran(module, directory, stage=stage, max_epochs=1, logger=CSVLogger(directory))
        logged[stage] = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return logged


@pytest.mark.parametrize(
    ("stage", "prefix", "extra"),
    [
        ("fit", "train", ("psnr", "ssim", "jacobian", "samples_per_second", "skipped", "left_out", "diverged")),
        ("fit", "val", ("psnr", "ssim")),
        ("validate", "val", ("psnr", "ssim")),
        ("test", "test", ("psnr", "ssim", "psnr_ours", "psnr_mean_image", "ssim_ours", "ssim_mean_image")),
    ],
)
def test_every_stage_logs_its_figures(
    celeba_run: dict[str, dict[str, float]], stage: str, prefix: str, extra: tuple[str, ...]
) -> None:
    logged = {name.removeprefix(f"{prefix}/"): v for name, v in celeba_run[stage].items() if name.startswith(prefix)}
    assert logged.keys() == {*FIGURES, *extra}
    assert all(math.isfinite(value) for value in logged.values())
    assert logged["nfe"] == 6 and logged["converged"] == 0
    mean_square = (logged["objective"] / 16**2, 4 / 10 ** (logged["psnr"] / 10))
    assert mean_square[1] <= mean_square[0] * 1.05 < 4


# -- checkpoints ------------------------------------------------------------------------------------------------------


class Given(Tiny):
    """A task whose argument is no plain value, and has no default."""

    def __init__(self, y: Tensor) -> None:
        super().__init__(samples=len(y))
        self.y = y


PARTS: dict[str, Any] = {
    "solver": JointAnderson(max_nfe=7, step_size=0.3),
    "adjoint": Halved(),
    "regularizers": [JacobianPenalty(weight=0.5, visits=1), Size()],
    "optimization": Optimization(Algorithm.ADAMW, lr=0.01, weight_decay=0.1, schedule=Schedule.ONE_CYCLE),
}


def trained(directory: Path, task: Task) -> tuple[JointModule, Path]:
    module = JointModule(task, **PARTS)
    trainer = ran(module, directory, max_epochs=1, enable_checkpointing=True)
    return module, Path(trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]


def test_a_checkpoint_rebuilds_the_module_without_naming_classes(tmp_path: Path) -> None:
    module, path = trained(tmp_path, Tiny(samples=6, batch_size=3, gain=0.4))
    torch.load(path, weights_only=True)
    again = JointModule.load_from_checkpoint(path)
    assert type(again.task) is Tiny
    assert again.task.init_args == {"samples": 6, "batch_size": 3, "gain": 0.4, "spoiled": []}
    for name in ("solver", "adjoint", "regularizers", "optimization"):
        assert getattr(again, name) == getattr(module, name)
    batch = module.task.batch()  # type: ignore[operator]
    assert torch.equal(again(batch).x, module(batch).x)
    other = JointModule.load_from_checkpoint(path, solver=ROUGH)
    assert other.solver == ROUGH and other.optimization == module.optimization


def test_a_task_with_arguments_that_are_not_plain_trains_and_loads_where_it_is_given(tmp_path: Path) -> None:
    task = Given(torch.randn(6, 4))
    module, path = trained(tmp_path, task)
    torch.load(path, weights_only=True)
    with pytest.raises(TypeError, match="task"):
        JointModule.load_from_checkpoint(path)
    again = JointModule.load_from_checkpoint(path, task=deepcopy(task), solver=PARTS["solver"])
    assert torch.equal(again(task.batch()).x, module(task.batch()).x)


# -- settings ---------------------------------------------------------------------------------------------------------


def test_compile_without_a_cell_says_what_to_do() -> None:
    task = Tiny()
    task.dynamics = task.cell
    del task.cell
    with pytest.raises(ProblemError, match="a module named 'cell' in the task, and Tiny has none: give"):
        JointModule(task, compile=True)
