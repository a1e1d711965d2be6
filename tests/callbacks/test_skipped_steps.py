"""Steps whose gradient cannot be used: skipped without a trace, counted, and the end of a run that has no others."""

from __future__ import annotations

import math
import warnings
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from bad_numbers import SOLVER, TRAINING, Watch, quiet, rows_of, same, spoil, trained
from deqopt import Equilibrium, JointModule, JointProblem
from deqopt.errors import CheckpointError, NonFiniteError
from deqopt.optimization import Optimization, Schedule
from deqopt.regularizers import Regularizer
from deqopt.step_guard import FEW, OVERFLOWS, StepGuard, usable_losses
from tiny_task import Tiny

pytestmark = TRAINING

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
    moved_to = {name.removeprefix("task."): value for name, value in watch.weights[1].items()}
    assert len(watch.gradients) == 2 + most and same(task.state_dict(), moved_to), "nothing has moved since"


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


def scaled(directory: Path, scaler: Any, *callbacks: Watch, most: int, max_epochs: int) -> JointModule:
    """Trained in half precision, until so many steps in a row are skipped."""
    plugins = [MixedPrecision("16-mixed", device="cpu", scaler=scaler)]
    optimization = Optimization(lr=0.01, schedule=Schedule.CONSTANT, max_skipped=most)
    settings = {"plugins": plugins, "optimization": optimization, "max_epochs": max_epochs}
    return trained(directory, Tiny(samples=4, batch_size=4), *callbacks, **settings)[0]


@quiet
def test_a_gradient_scaler_finds_its_scale_by_itself(tmp_path: Path) -> None:
    """Its first scales overflow: these steps are no faults, and none of them counts for the end of the run."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-30)
    module = scaled(tmp_path, scaler, most=1, max_epochs=8)
    assert 2 <= module.guard.skipped < 6 and module.guard.taken == 8 - module.guard.skipped
    assert 1 < scaler.get_scale() <= 2.0**16


@quiet
def test_a_gradient_scaler_does_not_hide_a_gradient_that_stays_bad(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with pytest.raises(NonFiniteError, match="in 3 steps in a row"):
        scaled(tmp_path, scaler, Watch(spoil(math.nan, *range(50))), most=3, max_epochs=50)


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
