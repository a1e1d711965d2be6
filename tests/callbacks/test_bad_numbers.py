"""Training where numbers go wrong: what is left out, what is skipped, what ends the run, and what is said of it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from bad_numbers import BAD, EXACT, SOLVER, TRAINING, SpoiledStart, Watch, quiet, rows_of, same, trained
from deqopt import Equilibrium, JointModule, Status
from deqopt.adjoints import Implicit
from deqopt.optimization import Algorithm, Optimization
from deqopt.solvers import Tracking
from tiny_task import Batch, Tiny, quiet_trainer

pytestmark = TRAINING


def without_the_bad_one(task: Any) -> Any:
    """The same task on the other samples."""
    without = deepcopy(task)
    without.y, without.victim = without.y[torch.arange(len(without.y)) != 1], -1
    return without


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sample_is_left_out_and_the_others_are_learned_from_as_if_they_were_alone(
    tmp_path: Path, name: str
) -> None:
    task = BAD[name](samples=4, batch_size=4)
    without = without_the_bad_one(task)
    watch, alone, logger = Watch(), Watch(), CSVLogger(tmp_path)
    settings = {"solver": EXACT, "precision": "64-true"}
    reason = "at their start although" if name == "SpoiledStart" else "have a loss that is NaN or infinite"
    with pytest.warns(UserWarning, match=f"^1 of 4 samples .*{reason}.*: left out$"):
        trained(tmp_path, task, watch, logger=logger, **settings)
    trained(tmp_path, without, alone, **settings)
    torch.testing.assert_close(watch.gradients[0], alone.gradients[0], rtol=1e-7, atol=1e-7)
    assert rows_of(logger, "train/left_out") == [1.0] and rows_of(logger, "train/skipped") == [0.0]


@quiet
@pytest.mark.parametrize("name", BAD)
def test_no_figure_counts_a_sample_that_is_left_out(tmp_path: Path, name: str) -> None:
    task = BAD[name](samples=4, batch_size=4)
    both = task, without_the_bad_one(task)
    (_, got), (_, want) = (trained(tmp_path, one, solver=EXACT, precision="64-true") for one in both)
    figures = {name: value for name, value in want.callback_metrics.items() if "second" not in name}
    for figure in figures.keys() - {"train/left_out"}:
        assert float(got.callback_metrics[figure]) == pytest.approx(float(want.callback_metrics[figure]), rel=1e-6)


@quiet
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_leaves_out_a_sample_that_is_lost_at_its_start(tmp_path: Path, stage: str) -> None:
    task = SpoiledStart(samples=6, batch_size=4)
    results = []
    for one in (task, without_the_bad_one(task)):
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
    torch.testing.assert_close(watch.gradients[0], alone.gradients[0])
    assert rows_of(logger, "train/diverged") == [1.0, 2.0] and rows_of(logger, "train/left_out") == [0.0, 0.0]


class Root(Tiny):
    """A loss of a sample that is 0, and whose gradient is infinite."""

    def loss(self, equilibrium: Equilibrium, batch: Batch) -> Tensor:
        weight = (batch["index"] != 1).to(equilibrium.x)
        return (weight * equilibrium.x.square().sum(1)).sqrt() + equilibrium.objective


def test_samples_whose_backward_solve_is_lost_are_counted_and_in_no_figure(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    with pytest.warns(UserWarning, match="Implicit: 1 of 4 samples give no gradient, because the gradient of the loss"):
        trained(tmp_path, Root(samples=4, batch_size=4), logger=logger, solver=EXACT, adjoint=Implicit(tol=1e-3))
    assert rows_of(logger, "train/diverged") == [1.0] and rows_of(logger, "train/backward_converged") == [1.0]
    assert 0 < rows_of(logger, "train/backward_residual")[0] <= 1e-3
