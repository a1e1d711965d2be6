"""Training where numbers go wrong: what is left out, what is skipped, what ends the run, and what is said of it."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from tiny_task import STATE, Batch, Tiny, quiet_trainer
from torch import Tensor

from deqopt import Equilibrium, JointModule, JointProblem, Status
from deqopt.adjoints import Implicit
from deqopt.callbacks import RunCheckpoint
from deqopt.errors import CheckpointError, NonFiniteError, ProblemError
from deqopt.optimization import Algorithm, Optimization, Schedule
from deqopt.regularizers import Regularizer
from deqopt.solvers import JointAnderson, Tracking
from deqopt.step_guard import FEW, OVERFLOWS, StepGuard, usable_losses

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]
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
        self.gradients.append({name: one.grad.clone() for name, one in pl_module.named_parameters()})

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
    rows = csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text().splitlines())
    return [float(row[name]) for row in rows if row[name]]


# -- samples ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sample_is_left_out_and_the_others_are_learned_from_as_if_they_were_alone(
    tmp_path: Path, name: str
) -> None:
    task = BAD[name](samples=4, batch_size=4)
    without = deepcopy(task)
    without.y, without.victim = without.y[[0, 2, 3]], -1  # type: ignore[attr-defined]
    watch, alone, logger = Watch(), Watch(), CSVLogger(tmp_path)
    settings = {"solver": EXACT, "precision": "64-true"}
    reason = "at their start although" if name == "SpoiledStart" else "have a loss that is NaN or infinite"
    with pytest.warns(UserWarning, match=f"^1 of 4 samples .*{reason}.*: left out$"):
        trained(tmp_path, task, watch, logger=logger, **settings)
    trained(tmp_path, without, alone, **settings)
    for parameter, want in alone.gradients[0].items():
        torch.testing.assert_close(watch.gradients[0][parameter], want, rtol=1e-7, atol=1e-7)
    assert rows_of(logger, "train/left_out") == [1.0] and rows_of(logger, "train/skipped") == [0.0]


@quiet
@pytest.mark.parametrize("name", BAD)
def test_no_figure_counts_a_sample_that_is_left_out(tmp_path: Path, name: str) -> None:
    task = BAD[name](samples=4, batch_size=4)
    without = deepcopy(task)
    without.y, without.victim = without.y[[0, 2, 3]], -1  # type: ignore[attr-defined]
    (_, got), (_, want) = (trained(tmp_path, one, solver=EXACT, precision="64-true") for one in (task, without))
    figures = {name: value for name, value in want.callback_metrics.items() if "second" not in name}
    for figure in figures.keys() - {"train/left_out"}:
        assert float(got.callback_metrics[figure]) == pytest.approx(float(want.callback_metrics[figure]), rel=1e-6)


@quiet
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_leaves_out_a_sample_that_is_lost_at_its_start(tmp_path: Path, stage: str) -> None:
    task = SpoiledStart(samples=6, batch_size=4)
    without = deepcopy(task)
    without.y, without.victim = without.y[[0, 2, 3, 4, 5]], -1
    results = []
    for one in (task, without):
        trainer = quiet_trainer(tmp_path)
        results += getattr(trainer, stage)(JointModule(one, solver=EXACT), one.datamodule().batches(), verbose=False)
    assert results[0] == pytest.approx(results[1], rel=1e-4, abs=1e-6) and len(results[0]) >= 5


@quiet
def test_predict_leaves_it_out_too(tmp_path: Path) -> None:
    task = SpoiledStart(samples=4, batch_size=4)
    (output,) = quiet_trainer(tmp_path).predict(JointModule(task, solver=SOLVER), task.datamodule().batches())  # type: ignore[misc]
    assert output["batch"]["index"].tolist() == [0, 2, 3] and len(output["equilibrium"].x) == 3


def test_what_cannot_be_learned_from_at_all_is_no_step(tmp_path: Path) -> None:
    """The second of three batches is all NaN: Adam does not move on, nor does a weight decay."""
    task, watch = Tiny(samples=6, batch_size=2, spoiled=[2, 3]), Watch()
    optimization = Optimization(Algorithm.ADAMW, lr=0.01, weight_decay=0.5)
    with (
        pytest.warns(UserWarning, match="^2 of 2 samples of a batch hold NaN"),
        pytest.warns(UserWarning, match="no sample of the step can be learned from: training step 1 is skipped"),
    ):
        module, _ = trained(tmp_path, task, watch, optimization=optimization)
    assert same(watch.weights[1], watch.weights[0]) and same(watch.states[1], watch.states[0])
    assert not same(watch.weights[2], watch.weights[1]) and module.guard.skipped == 1 and module.guard.left_out == 2


@dataclass(frozen=True)
class Marks(Tracking):
    """Says of the first samples of every batch that they diverged."""

    marked: int = 1

    def solve(self, *args: Any, **settings: Any) -> Equilibrium:
        found = super().solve(*args, **settings)
        first = torch.arange(len(found.status)) < self.marked
        return replace(found, status=found.status.masked_fill(first, int(Status.DIVERGED)))


def test_samples_whose_solve_diverged_are_left_out_and_counted(tmp_path: Path) -> None:
    task, logger, watch, alone = Tiny(samples=8, batch_size=4), CSVLogger(tmp_path), Watch(), Watch()
    without = deepcopy(task)
    without.y = without.y[[1, 2, 3, 5, 6, 7]]
    without._batch_size = 3
    settings = {"max_epochs": 1, "precision": "64-true"}
    with pytest.warns(UserWarning, match="Envelope: 1 of 4 samples give no gradient, because their solve diverged"):
        trained(tmp_path, task, watch, solver=Marks(16, step_size=0.5), logger=logger, **settings)
    trained(tmp_path, without, alone, **settings)
    for name, want in alone.gradients[0].items():
        torch.testing.assert_close(watch.gradients[0][name], want)
    assert rows_of(logger, "train/diverged") == [1.0, 2.0] and rows_of(logger, "train/left_out") == [0.0, 0.0]


class Root(Tiny):
    """A loss of a sample that is 0, and whose gradient is infinite."""

    def loss(self, equilibrium: Equilibrium, batch: Batch) -> Tensor:
        weight = (batch["index"] != 1).to(equilibrium.x)
        return (weight * equilibrium.x.square().sum(1)).sqrt() + equilibrium.objective


def test_samples_whose_backward_solve_is_lost_are_counted_and_in_no_figure(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    with pytest.warns(UserWarning, match="Implicit: 1 of 4 samples give no gradient, because that of the loss is NaN"):
        trained(tmp_path, Root(samples=4, batch_size=4), logger=logger, solver=EXACT, adjoint=Implicit(tol=1e-3))
    assert rows_of(logger, "train/diverged") == [1.0] and rows_of(logger, "train/backward_converged") == [1.0]
    assert 0 < rows_of(logger, "train/backward_residual")[0] <= 1e-3


# -- steps ------------------------------------------------------------------------------------------------------------


@quiet
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e12, 1e30])
def test_a_step_with_a_bad_gradient_is_skipped_and_leaves_no_trace(tmp_path: Path, value: float) -> None:
    """In the weights, in the moments of Adam, or in the steps that follow: those of a run without that step."""
    bad = 14
    task, watch, logger = Tiny(samples=4, batch_size=4), Watch(spoil(value, bad)), CSVLogger(tmp_path)
    optimization = Optimization(lr=0.01, schedule=Schedule.CONSTANT)
    twin, sane = deepcopy(task), Watch()
    module, _ = trained(tmp_path, task, watch, max_epochs=20, logger=logger, optimization=optimization)
    trained(tmp_path, twin, sane, max_epochs=19, optimization=optimization)
    assert same(watch.weights[bad], watch.weights[bad - 1]) and same(watch.states[bad], watch.states[bad - 1])
    assert same(watch.weights[-1], sane.weights[-1]) and same(watch.states[-1], sane.states[-1])
    assert rows_of(logger, "train/skipped") == [0.0] * bad + [1.0] * (20 - bad) and module.guard.row == 0


@quiet
def test_a_step_of_accumulated_batches_is_skipped_as_a_whole(tmp_path: Path) -> None:
    task, watch = Tiny(samples=8, batch_size=2), Watch(spoil(math.nan, 2))
    module, trainer = trained(tmp_path, task, watch, accumulate_grad_batches=2, max_epochs=2)
    assert module.guard.skipped == 1 and module.guard.taken == 3
    assert same(watch.weights[3], watch.weights[1]) and not same(watch.weights[5], watch.weights[3])
    assert all(float(one["step"]) == 3 for one in trainer.optimizers[0].state_dict()["state"].values())


@dataclass(frozen=True)
class Penalty(Regularizer):
    """NaN from a call on."""

    name: ClassVar[str] = "penalty"
    weight: float = 1.0
    calls: ClassVar[list[int]] = []
    since: int = 0

    def penalty(self, problem: JointProblem, equilibrium: Equilibrium) -> Tensor:
        self.calls.append(1)
        size = problem.f(equilibrium.z, equilibrium.x).square().mean()  # type: ignore[union-attr]
        return size * (math.nan if len(self.calls) > self.since else 1.0)


@quiet
@pytest.mark.parametrize("most", [1, 3])
def test_a_gradient_that_stays_bad_ends_the_run_after_so_many_steps(tmp_path: Path, most: int) -> None:
    Penalty.calls.clear()
    task, watch = Tiny(samples=4, batch_size=4), Watch()
    optimization = Optimization(lr=0.01, max_skipped=most)
    pattern = rf"^the gradient is NaN or infinite, at training step 2: lower .*No gradient .* in {most} steps in a row$"
    with (
        pytest.warns(UserWarning, match="the gradient is NaN or infinite: training step 2 is skipped"),
        pytest.raises(NonFiniteError, match=pattern),
    ):
        trained(tmp_path, task, watch, regularizers=[Penalty(since=2)], max_epochs=50, optimization=optimization)
    assert len(watch.gradients) == 2 + most and same(
        task.state_dict(),
        {  # nothing has moved since
            name.removeprefix("task."): value for name, value in watch.weights[1].items()
        },
    )


@quiet
def test_single_bad_steps_do_not_add_up(tmp_path: Path) -> None:
    module, _ = trained(tmp_path, Tiny(samples=4), Watch(spoil(math.nan, *range(0, 20, 2))), max_epochs=20)
    assert module.guard.skipped == 10 and module.guard.taken == 10


@quiet
def test_an_epoch_without_a_step_ends_the_run_before_it_is_validated(tmp_path: Path) -> None:
    task = Tiny(samples=4, batch_size=2)
    with pytest.raises(NonFiniteError, match=r"NaN or infinite, at training step 2: .* used in a whole epoch$"):
        trained(tmp_path, task, Watch(spoil(math.nan, 2, 3)), max_epochs=5)


@quiet
def test_a_run_without_a_step_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        NonFiniteError, match=r"^all 3 samples of a batch hold NaN .* step 0: check the data .*whole run$"
    ):
        trained(tmp_path, Tiny(samples=3, spoiled=[0, 1, 2]))


@quiet
def test_a_gradient_scaler_finds_its_scale_by_itself(tmp_path: Path) -> None:
    """Its first scales overflow: these steps are no faults, and none of them counts for the end of the run."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-30)
    plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
    module, _ = trained(
        tmp_path,
        Tiny(samples=4, batch_size=4),
        plugins=[plugin],
        max_epochs=8,
        optimization=Optimization(lr=0.01, schedule=Schedule.CONSTANT, max_skipped=1),
    )
    assert 2 <= module.guard.skipped < 6 and module.guard.taken == 8 - module.guard.skipped
    assert 1 < scaler.get_scale() <= 2.0**16


@quiet
def test_a_gradient_scaler_does_not_hide_a_gradient_that_stays_bad(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with pytest.raises(NonFiniteError, match="in 3 steps in a row"):
        trained(
            tmp_path,
            Tiny(samples=4, batch_size=4),
            Watch(spoil(math.nan, *range(50))),
            plugins=[MixedPrecision("16-mixed", device="cpu", scaler=scaler)],
            optimization=Optimization(lr=0.01, schedule=Schedule.CONSTANT, max_skipped=3),
            max_epochs=50,
        )


def test_what_was_left_out_goes_on_with_the_checkpoint(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is skipped")
        module, trainer = trained(tmp_path, Tiny(samples=4), Watch(spoil(math.nan, 1)), max_epochs=4)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    again = JointModule(Tiny(samples=4), solver=SOLVER)
    again.on_load_checkpoint(torch.load(tmp_path / "one.ckpt", weights_only=True))
    assert again.guard == module.guard and again.guard.skipped == 1 and len(again.guard.recent) == 3


@pytest.mark.parametrize(
    "values", [{"recent": ["1"]}, {"skipped": None}, {"use": 1}, {"cause": 3}, {"recent": 1.0}, {"row": True}]
)
def test_a_checkpoint_that_says_something_else_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="its step_guard is damaged"):
        StepGuard().load_state_dict({**StepGuard(skipped=1).state_dict(), **values})


# -- the guard --------------------------------------------------------------------------------------------------------


def guard_after(*lengths: float) -> StepGuard:
    guard = StepGuard()
    for one in lengths:
        assert guard.complaint(one) is None
        guard.use(one)
    return guard


@pytest.mark.parametrize("length", [math.nan, math.inf, OVERFLOWS, 1e30])
@pytest.mark.parametrize("before", [(), (1.0,), (1.0,) * 50, (1e14,) * 50])
def test_such_a_gradient_is_never_used(length: float, before: tuple[float, ...]) -> None:
    assert guard_after(*before).complaint(length) is not None


@pytest.mark.parametrize(
    "lengths",
    [
        (0.0, 0.0, 1e-6, 1.0),  # a layer that starts at zero
        (1e-6, 1.0, 1e3, 1e5, 1e-9, 1e5),
        tuple(10.0**k for k in range(-10, 14)),  # a growth of ten times a step
        (*(1.0,) * 60, 9e3, 1e-8, 9e3),
        (*(1e3, 1e-7) * 60, 9e6),
    ],
)
def test_what_grows_with_the_training_is_used(lengths: tuple[float, ...]) -> None:
    guard_after(*lengths)


@pytest.mark.parametrize(("before", "length"), [((1.0,) * FEW, 2e4), ((1.0, 3.0), 4e8), ((*(1.0,) * 200, 0.0), 2e4)])
def test_what_is_out_of_all_proportion_is_not(before: tuple[float, ...], length: float) -> None:
    complaint = guard_after(*before).complaint(length)
    assert complaint is not None and f"{length:.1e}" in complaint and f"{max(before):.1e}" in complaint


def test_a_loss_of_any_sign_and_ordinary_size_is_usable() -> None:
    losses = torch.tensor([0.0, -3.0, 1e9, -1e14, 1e16, -1e30, torch.inf, -torch.inf, torch.nan])
    assert usable_losses(losses).tolist() == [True] * 4 + [False] * 5


def test_max_skipped_is_at_least_one() -> None:
    with pytest.raises(ProblemError, match="max_skipped must be at least 1, got 0"):
        Optimization(max_skipped=0)


# -- weights and figures ----------------------------------------------------------------------------------------------


class Break(Callback):
    """Spoils a weight after a batch, as nothing should."""

    def __init__(self, batch: int, name: str = "head.weight") -> None:
        self.batch, self.name = batch, name

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            with torch.no_grad():
                pl_module.get_parameter(f"task.{self.name}").view(-1)[0] = torch.nan


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
    checkpoint = RunCheckpoint()
    module = JointModule(task, solver=SOLVER)
    trainer = quiet_trainer(
        tmp_path, max_epochs=2, callbacks=[Break(batch, "outer.weight"), checkpoint], enable_checkpointing=True
    )
    with pytest.raises(
        NonFiniteError,
        match=rf"task\.outer\.weight holds NaN .* at training step {batch + 1}: the weights have diverged\.",
    ):
        trainer.fit(module, datamodule=task.datamodule())
    for path in tmp_path.rglob("*.ckpt*"):
        kept = torch.load(path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in kept.values()), path
    assert bool(list(tmp_path.rglob("last.ckpt"))) == (batch > 1)


def test_an_exception_with_nan_weights_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Interrupts(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            if trainer.global_step == 3:
                with torch.no_grad():
                    pl_module.get_parameter("task.head.weight").fill_(torch.nan)
                raise KeyboardInterrupt

    task = Tiny(samples=8, batch_size=4)
    trainer = quiet_trainer(
        tmp_path, max_epochs=3, callbacks=[Interrupts(), RunCheckpoint()], enable_checkpointing=True
    )
    with warnings.catch_warnings(), pytest.raises((KeyboardInterrupt, SystemExit, NonFiniteError)):
        warnings.filterwarnings("ignore", message=".*NaN or infinite")
        trainer.fit(JointModule(task, solver=SOLVER), datamodule=task.datamodule())
    (path,) = tmp_path.rglob("last.ckpt")
    kept = torch.load(path, weights_only=True)
    assert kept["global_step"] == 2 and all(value.isfinite().all() for value in kept["state_dict"].values())


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_nan_weights_that_the_solve_does_not_meet_are_noticed_all_the_same(tmp_path: Path, stage: str) -> None:
    task = Outer()
    with torch.no_grad():
        task.outer.bias.fill_(torch.inf)
    with pytest.raises(NonFiniteError, match=r"^task\.outer\.bias holds NaN or infinite values at training step 0"):
        getattr(quiet_trainer(tmp_path, max_epochs=1), stage)(JointModule(task), datamodule=task.datamodule())


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
    task = Evaluated(samples=4, batch_size=4)
    module = JointModule(task, solver=SOLVER)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_trainer(tmp_path, max_epochs=3).fit(module, datamodule=task.datamodule())
    said = [str(one.message) for one in caught if "it says nothing" in str(one.message)]
    assert said == [
        "val/loss is nan at training step 1: it says nothing",
        "val/mse is nan at training step 1: it says nothing",
    ]


def test_ordinary_training_leaves_nothing_out(tmp_path: Path) -> None:
    for lr in (1e-3, 0.1):
        module, _ = trained(tmp_path, Tiny(samples=12, batch_size=4), max_epochs=20, optimization=Optimization(lr=lr))
        assert (module.guard.skipped, module.guard.left_out, module.guard.diverged) == (0, 0, 0)
