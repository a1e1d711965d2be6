"""The optimiser and the schedule that are asked for train the network; what cannot be made is refused by name."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from deqopt import JointModule
from deqopt.errors import ProblemError
from deqopt.optimization import Algorithm, Optimization, Schedule
from deqopt.solvers import Tracking
from hooks import On, ran
from tiny_task import Tiny

ROUGH = Tracking(max_nfe=4, step_size=0.5, settle=1)


def trained(task: Tiny, directory: Path, optimization: Optimization, epochs: int) -> tuple[Trainer, list[float]]:
    """With the learning rate of every training step."""
    rates: list[float] = []
    note = On(on_after_backward=lambda trainer, _: rates.append(trainer.optimizers[0].param_groups[0]["lr"]))
    return ran(JointModule(task, ROUGH, optimization=optimization), directory, note, max_epochs=epochs), rates


def rate_at(schedule: Schedule, step: int, steps: int, lr: float) -> float:
    """The formulas of the documentation."""
    if schedule is Schedule.CONSTANT:
        return lr
    if schedule is Schedule.COSINE:
        return lr * (1 + math.cos(math.pi * step / steps)) / 2
    peak = 0.3 * steps - 1
    low, high, share = (lr / 25, lr, step / peak) if step <= peak else (lr, 0, (step - peak) / (steps - 1 - peak))
    return low + (high - low) * (1 - math.cos(math.pi * share)) / 2


@pytest.mark.parametrize("schedule", Schedule)
def test_the_learning_rate_follows_the_schedule(tmp_path: Path, schedule: Schedule) -> None:
    _, rates = trained(Tiny(samples=8, batch_size=2), tmp_path, Optimization(lr=0.02, schedule=schedule), epochs=5)
    assert rates == pytest.approx([rate_at(schedule, step, 20, 0.02) for step in range(20)], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [(Algorithm.ADAM, torch.optim.Adam), (Algorithm.ADAMW, torch.optim.AdamW), (Algorithm.SGD, torch.optim.SGD)],
)
def test_the_chosen_algorithm_trains_the_task(tmp_path: Path, algorithm: Algorithm, kind: type) -> None:
    task = Tiny(samples=8, batch_size=4)
    before = deepcopy(task.state_dict())
    trainer, _ = trained(task, tmp_path, Optimization(algorithm, lr=0.01, weight_decay=0.5), epochs=3)
    (optimizer,) = trainer.optimizers
    (group,) = optimizer.param_groups
    assert type(optimizer) is kind and group["weight_decay"] == 0.5 and group.get("momentum", 0.9) == 0.9
    assert not any(torch.equal(value, before[name]) for name, value in task.state_dict().items())


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    task = Tiny(samples=12, batch_size=6)
    module = JointModule(task, solver=Tracking(max_nfe=16, step_size=0.5), optimization=Optimization(lr=0.02))
    before = validation_loss(module, tmp_path)
    ran(module, tmp_path, max_epochs=20, limit_val_batches=0)
    assert validation_loss(module, tmp_path) < 0.7 * before


def validation_loss(module: JointModule, directory: Path) -> float:
    return float(ran(module, directory, stage="validate").callback_metrics["val/loss"])


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("steps", [math.inf, -1])
def test_a_schedule_that_ends_with_the_run_needs_a_run_that_ends(schedule: Schedule, steps: float) -> None:
    optimization = Optimization(schedule=schedule)
    if schedule is Schedule.CONSTANT:
        assert optimization.length(steps) == 0
        return
    with pytest.raises(ProblemError, match=rf"the schedule {schedule.name} ends with the run"):
        optimization.length(steps)
    assert optimization.length(7.0) == 7


RMSPROP, STEPS = "torch.optim.RMSprop", "torch.optim.lr_scheduler.StepLR"


def test_an_optimiser_and_a_schedule_can_be_any_class(tmp_path: Path) -> None:
    optimization = Optimization(RMSPROP, 0.02, 0.5, STEPS, 10, {"momentum": 0.5}, {"step_size": 3, "gamma": 0.1})
    trainer, rates = trained(Tiny(samples=8, batch_size=2), tmp_path, optimization, epochs=2)
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is torch.optim.RMSprop
    assert (optimizer.param_groups[0]["momentum"], optimizer.param_groups[0]["weight_decay"]) == (0.5, 0.5)
    assert rates == pytest.approx([0.02 * 0.1 ** (step // 3) for step in range(8)])


def test_an_optimiser_without_weight_decay_is_given_none() -> None:
    optimization = Optimization("torch.optim.Rprop")
    assert "weight_decay" not in optimization.optimizer([torch.nn.Parameter(torch.zeros(1))]).defaults


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no name": (
        {"algorithm": "FOO"},
        r"algorithm must be ADAM, ADAMW, SGD or the path of a subclass of Optimizer, got 'FOO'$",
    ),
    "no class": (
        {"schedule": "torch.optim.lr_scheduler.Foo"},
        r"schedule must be CONSTANT, .* of LRScheduler, got .*Foo.: module .* has no attribute",
    ),
    "another kind": (
        {"algorithm": "torch.nn.Linear"},
        r"algorithm must be .*: torch\.nn\.Linear is no Optimizer but Linear",
    ),
    "optimiser of closures": ({"algorithm": "torch.optim.LBFGS"}, "algorithm .*LBFGS wants 'closure' at every step"),
    "schedule of figures": (
        {"schedule": "torch.optim.lr_scheduler.ReduceLROnPlateau"},
        "schedule .*Plateau wants 'metrics' at every step",
    ),
    "lacking": ({"schedule": STEPS}, "StepLR: .*missing 1 required positional argument: 'step_size'"),
    "unknown": ({"algorithm_args": {"momentun": 0.5}}, "Adam: .*unexpected keyword argument 'momentun'"),
    "value": ({"algorithm_args": {"eps": -1.0}}, "Adam: Invalid epsilon value: -1.0"),
    "decay": ({"algorithm": "torch.optim.Rprop", "weight_decay": 0.1}, "Rprop: .*'weight_decay'"),
    "momentum": ({"algorithm": "torch.optim.Adagrad", "schedule": Schedule.ONE_CYCLE}, "OneCycleLR: .* momentum"),
    "twice": ({"algorithm_args": {"lr": 0.1}}, "give lr itself, and not among algorithm_args"),
    "for nothing": ({"schedule_args": {"gamma": 0.1}}, "the schedule COSINE takes no schedule_args"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_optimization_that_cannot_be_made_says_why(case: str) -> None:
    settings, message = REFUSED[case]
    with pytest.raises(ProblemError, match=f"^Optimization: {message}"):
        Optimization(**settings)
