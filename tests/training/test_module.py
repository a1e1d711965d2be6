"""JointModule under a Trainer: gradients, what is logged, bad batches, checkpoints, settings that take effect."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from deqopt_tasks.celeba.task import CelebA
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.nn.utils import parametrize

from deqopt import Equilibrium, JointModule, JointProblem, Task
from deqopt.adjoints import Envelope
from deqopt.callbacks import PredictionWriter
from deqopt.errors import NonFiniteError, ProblemError
from deqopt.optimization import Algorithm, Optimization, Schedule
from deqopt.regularizers import JacobianPenalty, Regularizer
from deqopt.solvers import JointAnderson, Tracking
from deqopt.state import tensors_of
from tiny_task import WEIGHT_OF_X, Tiny, quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]

EXACT = JointAnderson(max_nfe=500, tol=1e-10, step_size=0.2)
ROUGH = Tracking(max_nfe=4, step_size=0.5, settle=1)
EVALUATIONS = "validate", "test", "predict"
FIGURES = ("objective", "loss", "residual", "nfe", "converged")


class Watch(Callback):
    """Gradients of every training step, and what every evaluation returns."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.outputs: list[dict[str, Any]] = []

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        named = pl_module.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.outputs.append(outputs)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.outputs.append(outputs)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.outputs.append(outputs)


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
    watch = Watch()
    module = JointModule(task, **{"solver": EXACT, **parts})
    trainer = quiet_trainer(directory, max_steps=1, precision="64-true", callbacks=[watch])
    trainer.fit(module, datamodule=task.datamodule())  # type: ignore[arg-type]
    return watch.gradients[0]


def solved_z(task: Tiny, x: Tensor) -> Tensor:
    """``z = f(z, x)`` by plain iteration of a contractive cell; differentiable in x and theta."""
    z = x.new_zeros(len(x), task.cell.state.in_features)
    for _ in range(120):
        z = task.cell(z, x)
    return z


def best_x(task: Tiny, y: Tensor) -> Tensor:
    """The x of the least ``J(z(x), x)`` by L-BFGS through the unrolled iteration."""
    x = y.new_zeros(len(y), task.cell.input.in_features).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [x], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(task, solved_z(task, x), x, y).sum()
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
    task.zero_grad()
    return x.detach()


def objective(task: Tiny, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return (z @ task.head.weight.T - y).square().sum(1) + WEIGHT_OF_X * x.square().sum(1)


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
    task = Tiny(samples=8)
    module = JointModule(task, solver=ROUGH, regularizers=[JacobianPenalty(), Size(visits=visits)])
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, datamodule=task.datamodule())
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


@pytest.mark.parametrize("stage", EVALUATIONS)
def test_a_nan_sample_is_left_out_of_evaluation(tmp_path: Path, stage: str) -> None:
    task, watch = Tiny(samples=6, batch_size=4, spoiled=[1, 4]), Watch()
    module = JointModule(task, solver=ROUGH)
    with pytest.warns(UserWarning, match="left out"):
        getattr(quiet_trainer(tmp_path, callbacks=[watch]), stage)(module, datamodule=task.datamodule())
    kept = [output["batch"]["index"].tolist() for output in watch.outputs]
    assert kept == [[0, 2, 3], [5]]
    assert all(output["equilibrium"].objective.isfinite().all() for output in watch.outputs)


@pytest.mark.parametrize("stage", ["fit", *EVALUATIONS])
def test_a_batch_of_nan_is_an_error_about_the_data(tmp_path: Path, stage: str) -> None:
    task = Tiny(samples=3, spoiled=[0, 1, 2])
    trainer = quiet_trainer(tmp_path, max_epochs=1, limit_val_batches=0 if stage == "fit" else 1)
    told = pytest.warns(UserWarning, match="3 of 3 samples|no sample of the step") if stage == "fit" else nullcontext()
    pattern = r"^all 3 samples of a batch .* at training step 0: check the data"
    with told, pytest.raises(NonFiniteError, match=pattern):
        getattr(trainer, stage)(JointModule(task), datamodule=task.datamodule())


@pytest.mark.parametrize("stage", ["fit", *EVALUATIONS])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_weights_are_an_error_about_the_weights(tmp_path: Path, stage: str, value: float) -> None:
    task = Tiny(samples=4)
    with torch.no_grad():
        task.cell.input.bias.fill_(value)
        task.head.weight.fill_(value)
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    with pytest.raises(NonFiniteError, match=r"^task\.\S+ holds NaN .* at training step 0: the weights have diverged"):
        getattr(trainer, stage)(JointModule(task), datamodule=task.datamodule())


# -- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_is_at_the_feasible_point_and_averages_over_samples(tmp_path: Path, stage: str) -> None:
    """The solver stops far from the equilibrium, and the last of the batches is smaller: 4, 4 and 2 samples."""
    task, watch = Tiny(samples=10, batch_size=4), Watch()
    with torch.no_grad():
        task.cell.input.weight.mul_(3)
    trainer = quiet_trainer(tmp_path, callbacks=[watch])
    getattr(trainer, stage)(JointModule(task, solver=ROUGH), datamodule=task.datamodule())

    x = torch.cat([output["equilibrium"].x for output in watch.outputs])
    with torch.no_grad():
        z = solved_z(task, x)
        exact = objective(task, z, x, task.y).mean()
        error = (task.head(z) - task.y).square().mean()
    prefix = "val" if stage == "validate" else stage
    logged = {name.removeprefix(f"{prefix}/"): float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["objective"] == pytest.approx(float(exact), rel=1e-4)
    assert logged["loss"] == pytest.approx(float(exact), rel=1e-4)
    assert logged["mse"] == pytest.approx(float(error), rel=1e-4)
    stopped = torch.cat([output["solved"].objective for output in watch.outputs]).mean()
    assert abs(float(stopped) - float(exact)) > 0.005 * float(exact)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad])
def test_calling_the_module_solves_as_evaluation_does(tmp_path: Path, context: Callable[[], Any]) -> None:
    task, watch = Tiny(samples=4), Watch()
    module = JointModule(task, solver=ROUGH)
    quiet_trainer(tmp_path, callbacks=[watch]).test(module, datamodule=task.datamodule())
    with context():
        found = module(task.batch())
    assert torch.equal(found.x, watch.outputs[0]["equilibrium"].x)
    assert not any(part.requires_grad for part in (found.x, found.objective, *tensors_of(found.z)))


def test_evaluation_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    task = Tiny()
    module = JointModule(task, solver=ROUGH)
    task.head.weight.requires_grad_(False)
    task.head.eval()
    before = deepcopy(module.state_dict())

    def state() -> tuple[Any, ...]:
        flags = [p.requires_grad for p in module.parameters()], [part.training for part in module.modules()]
        return (*flags, [p.grad for p in module.parameters()], torch.is_grad_enabled(), dict(parametrize._cache))

    was = state()
    for stage in EVALUATIONS:
        getattr(quiet_trainer(tmp_path), stage)(module, datamodule=task.datamodule())
        assert state() == was
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_inference_mode_is_refused_with_advice(tmp_path: Path) -> None:
    task = Tiny()
    trainer = quiet_trainer(tmp_path, inference_mode=True)
    with pytest.raises(ProblemError, match=r"Trainer\(inference_mode=False\)"):
        trainer.validate(JointModule(task), datamodule=task.datamodule())


def test_predictions_are_written_batch_by_batch(tmp_path: Path) -> None:
    task, watch = Tiny(samples=5, batch_size=2), Watch()
    trainer = quiet_trainer(tmp_path, callbacks=[PredictionWriter(), watch])
    trainer.predict(JointModule(task, solver=ROUGH), datamodule=task.datamodule(), return_predictions=False)
    written = {path.name: torch.load(path) for path in (tmp_path / "predictions").iterdir()}
    assert written.keys() == {"0.pt", "2.pt", "4.pt"}
    for output, x in zip(watch.outputs, (written[name] for name in sorted(written)), strict=True):
        assert torch.equal(output["equilibrium"].x, x)


def test_trainer_predict_returns_the_solutions(tmp_path: Path) -> None:
    task = Tiny(samples=5, batch_size=3)
    module = JointModule(task, solver=ROUGH)
    outputs = quiet_trainer(tmp_path).predict(module, datamodule=task.datamodule())
    assert outputs is not None
    for output, rows in zip(outputs, ([0, 1, 2], [3, 4]), strict=True):
        assert torch.equal(output["equilibrium"].x, module(task.batch(*rows)).x)  # type: ignore[call-overload, index]


def test_a_solution_moves_to_another_device_whole() -> None:
    task = Tiny(samples=3)
    batch = task.batch()
    found = replace(
        ROUGH.solve(task.problem(batch), *task.start(batch), record=True, visits=2), z=(torch.ones(3, 1),) * 2
    )
    moved = found.to("meta")
    assert isinstance(moved, Equilibrium) and moved.trace is not None and len(moved.visited) == 2
    tensors = [*moved.z, moved.x, moved.mu, moved.objective, moved.residual, moved.status, moved.nfe]
    tensors += [moved.trace.objective, moved.trace.residual, *(part for point in moved.visited for part in point)]
    assert all(isinstance(part, Tensor) and part.is_meta for part in tensors)


# -- the task celeba: what is logged ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def celeba_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """The figures that fit and each evaluation logged on a few images of noise."""
    directory = tmp_path_factory.mktemp("celeba")
    torch.manual_seed(0)
    np.savez(directory / "noise.npz", images=np.random.RandomState(0).randint(0, 256, (40, 16, 16), dtype=np.uint8))
    task = CelebA(
        root=str(directory / "noise.npz"),
        size=16,
        image_channels=1,
        batch_size=8,
        latent=4,
        widths=[4, 6],
        components=1,
    )
    module = JointModule(task, solver=Tracking(max_nfe=6), regularizers=[JacobianPenalty(weight=0.1)])
    logged: dict[str, dict[str, float]] = {}
    for stage in ("fit", "validate", "test"):
        trainer = quiet_trainer(directory, max_epochs=1, logger=CSVLogger(directory))
        getattr(trainer, stage)(module, datamodule=task.datamodule())
        logged[stage] = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return logged


@pytest.mark.parametrize(
    ("stage", "prefix", "extra"),
    [
        (
            "fit",
            "train",
            ("psnr", "ssim", "jacobian", "samples_per_second", "skipped", "left_out", "diverged"),
        ),
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
    trainer = quiet_trainer(directory, max_epochs=1, enable_checkpointing=True)
    trainer.fit(module, datamodule=task.datamodule())
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
