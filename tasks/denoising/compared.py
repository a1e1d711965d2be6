"""Another trained model that restores the same measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from deqopt.command_line.checkpoints import settings_of
from deqopt.equilibrium import Equilibrium
from deqopt.errors import CheckpointError, ProblemError
from deqopt.module import JointModule
from deqopt.solvers import solve_exactly
from deqopt.weights import cached_weights

from .data import RestorationBatch
from .operator import MeasurementOperator


class Restoring(Protocol):
    """A task whose solutions are images."""

    operator: MeasurementOperator

    def restored(self, equilibrium: Equilibrium) -> Tensor:
        """(B, channels, H, W)."""


class ComparedModel:
    """Restores batches by the model of a checkpoint, with the solver that it was trained with.

    Args:
        path: path of the checkpoint; its settings are read at once, its weights with the first batch.
        kind: the class of its task.
        operator: measurement operator of the batches.

    Attributes:
        name: name of the adjoint that the model was trained with.

    Raises:
        CheckpointError: the checkpoint does not exist; with the first batch, it is of another task or measurement.
    """

    def __init__(self, path: str, kind: type[Restoring], operator: MeasurementOperator) -> None:
        self._path, self._kind, self._operator = path, kind, operator
        self._module: JointModule | None = None
        self.name: str = settings_of(Path(path))["adjoint"]["class_path"].rpartition(".")[2]

    def __call__(self, batch: RestorationBatch) -> Tensor:
        if self._module is None:
            self._module = self._loaded()
        module = self._module.to(batch.y.device).eval()
        with torch.enable_grad(), cached_weights(module):
            problem, solved = module.solve(batch)
            exact = solve_exactly(problem, solved)
        with torch.no_grad():
            restored: Tensor = module.task.restored(exact)  # type: ignore[operator, union-attr]
            return restored

    def _loaded(self) -> JointModule:
        try:
            module: JointModule = JointModule.load_from_checkpoint(self._path, map_location="cpu")
        except ProblemError as error:
            raise CheckpointError(f"{self._path}: {error}") from error
        task: Any = module.task
        if not isinstance(task, self._kind):
            raise CheckpointError(f"{self._path} is of the task {type(task).__name__}, expected {self._kind.__name__}")
        if task.operator != self._operator:
            raise CheckpointError(
                f"{self._path} was trained for another measurement, {task.operator}, than that of this test, "
                f"{self._operator}"
            )
        return module
