"""For every clause of the task contract, tasks that break it; all but one thing in them is sane (see ``tiny_task``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanSquaredError, Metric

from deqopt import Equilibrium, JointProblem, Task
from deqopt.feasible import Box, FeasibleSet, L2Ball
from tiny_task import OUTPUT, STATE, Batch, Targets, Tiny


class NoLoaders(Tiny):
    def datamodule(self) -> Any:
        return super().datamodule().test_dataloader()


class EmptyLoader(Tiny):
    def datamodule(self) -> Targets:
        data = super().datamodule()
        data.val_dataloader = lambda: DataLoader([])  # type: ignore[method-assign, arg-type]
        return data


class NothingToPredict(Tiny):
    """Writes predictions, of no data."""

    def datamodule(self) -> Any:
        targets = super().datamodule()
        loaders = {f"{stage}_dataloader": targets.batches for stage in ("train", "val", "test")}
        data = LightningDataModule()
        for name, loader in loaders.items():
            setattr(data, name, loader)
        return data


class PredictsNothing(NothingToPredict):
    """Sane: neither writes predictions nor has data for them."""

    write_predictions = Task.write_predictions


class StartsOutside(Tiny):
    def start(self, batch: Batch) -> tuple[Tensor, Tensor]:
        z0, x0 = super().start(batch)
        return z0, x0 + 3

    def problem(self, batch: Batch) -> JointProblem:
        return replace(super().problem(batch), feasible=Box(-1, 1))


class OneStart(Tiny):
    def start(self, batch: Batch) -> tuple[Tensor, Tensor]:
        z0, x0 = super().start(batch)
        return z0[:1], x0[:1]


class SummedObjective(Tiny):
    def _objective(self, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return super()._objective(z, x, y).sum()


class Normalised(Tiny):
    """BatchNorm in the cell."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(STATE)

    def _f(self, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * self.norm(super()._f(z, x, y))


class MeanStart(Tiny):
    def start(self, batch: Batch) -> tuple[Tensor, Tensor]:
        z0, x0 = super().start(batch)
        return z0, x0 + batch["y"].mean()


class Standardised(Tiny):
    """Targets in units of the batch's spread."""

    def problem(self, batch: Batch) -> JointProblem:
        return JointProblem(self._f, self._objective, data=batch["y"] / batch["y"].std(0))


class FeaturesFirst(Tiny):
    def problem(self, batch: Batch) -> JointProblem:
        return JointProblem(
            lambda z, x, y: self._f(z, x, y.T), lambda z, x, y: self._objective(z, x, y.T), data=batch["y"].T
        )


class StaleSet(L2Ball):
    """Balls of their own, and those of the first samples for all that are picked."""

    def pick(self, keep: Tensor, dim: int) -> FeasibleSet:
        assert self.center is not None
        return replace(self, center=self.center[: int(keep.sum())])


class StaleCentres(Tiny):
    def start(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return super().start(batch)[0], batch["y"][:, :3]

    def problem(self, batch: Batch) -> JointProblem:
        return replace(super().problem(batch), feasible=StaleSet(1.0, batch["y"][:, :3]))


class Noisy(Tiny):
    def problem(self, batch: Batch) -> JointProblem:
        return JointProblem(self._f, self._objective, data=batch["y"] + 0.1 * torch.randn_like(batch["y"]))


class MeanLoss(Tiny):
    def loss(self, equilibrium: Equilibrium, batch: Batch) -> Tensor:
        return equilibrium.objective.mean()


class InfiniteLoss(Tiny):
    def loss(self, equilibrium: Equilibrium, batch: Batch) -> Tensor:
        return equilibrium.objective / 0


class Unreached(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


class LossOfTheInput(Tiny):
    """Needs an adjoint that connects x."""

    def loss(self, equilibrium: Equilibrium, batch: Batch) -> Tensor:
        return equilibrium.x.square().sum(1)


class Frozen(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class TakesAModule(Tiny):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head  # type: ignore[assignment]


class UnsavedWeights(Tiny):
    """A tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = torch.randn(STATE)

    def _f(self, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return super()._f(z, x, y) + self.offset


class WritesNoise(Tiny):
    def problem(self, batch: Batch) -> JointProblem:
        batch["y"] += 0.1
        return super().problem(batch)


class LeavesMode(Tiny):
    def loss(self, equilibrium: Equilibrium, batch: Batch) -> Tensor:
        self.head.eval()
        return super().loss(equilibrium, batch)


class Counts(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def problem(self, batch: Batch) -> JointProblem:
        self.count += 1
        return super().problem(batch)


class NoOutcome(Tiny):
    outcome = Task.outcome


class ShortOutcome(Tiny):
    def outcome(self, equilibrium: Equilibrium, batch: Batch) -> tuple[Tensor, Tensor]:
        prediction, target = super().outcome(equilibrium, batch)
        return prediction[:1], target[:1]


class SharedMetric(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self._shared = [MeanSquaredError()]

    def metrics(self) -> Mapping[str, Metric]:
        return {"mse": self._shared[0]}


class NoMetrics(Tiny):
    """Sane."""

    def metrics(self) -> Mapping[str, Metric]:
        return {}


class DrawsArrays(Tiny):
    def figures(self, equilibrium: Equilibrium, batch: Batch) -> Any:
        return {"inputs": equilibrium.x.numpy()}


class DrawsElsewhere(Tiny):
    def figures(self, equilibrium: Equilibrium, batch: Batch) -> Mapping[str, Figure]:
        return {"../inputs": Figure()}


class OneFile(Tiny):
    def write_predictions(self, equilibrium: Equilibrium, batch: Batch, directory: Path) -> list[Path]:
        torch.save(equilibrium.x, directory / "inputs.pt")
        return [directory / "inputs.pt"]


class EmptyFiles(Tiny):
    def write_predictions(self, equilibrium: Equilibrium, batch: Batch, directory: Path) -> list[Path]:
        files = super().write_predictions(equilibrium, batch, directory)
        for file in files:
            file.write_bytes(b"")
        return files


class UnnamedFiles(Tiny):
    def write_predictions(self, equilibrium: Equilibrium, batch: Batch, directory: Path) -> list[Path]:
        super().write_predictions(equilibrium, batch, directory)
        return []


class NoPredictions(Tiny):
    """Sane."""

    write_predictions = Task.write_predictions


class NoCallbacks(Tiny):
    def callbacks(self) -> Any:
        return ["checkpoint"]


MUTANTS: dict[str, list[Callable[[], Task]]] = {
    "the_datamodule_gives_batches": [
        NoLoaders,
        EmptyLoader,
        NothingToPredict,
        lambda: Tiny(samples=4, spoiled=range(4)),
    ],
    "start_and_problem_fit": [StartsOutside, OneStart, SummedObjective, lambda: Tiny(batch_size=2)],
    "samples_are_not_coupled": [Normalised],
    "a_sample_has_one_solution": [MeanStart, Standardised],
    "data_can_be_compacted": [FeaturesFirst, StaleCentres],
    "evaluation_is_deterministic": [Noisy],
    "the_loss_is_one_value_a_sample": [MeanLoss, InfiniteLoss],
    "every_parameter_gets_a_gradient": [Unreached, LossOfTheInput, Frozen],
    "a_checkpoint_can_rebuild_it": [lambda: TakesAModule(nn.Linear(STATE, OUTPUT)), UnsavedWeights],
    "nothing_else_is_changed": [WritesNoise, LeavesMode, Counts],
    "metrics_take_the_outcome": [NoOutcome, ShortOutcome, SharedMetric],
    "figures_can_be_drawn": [DrawsArrays, DrawsElsewhere],
    "predictions_are_written": [OneFile, EmptyFiles, UnnamedFiles],
    "callbacks_are_callbacks": [NoCallbacks],
}
