"""A task under examination: its batches, its solves, and its state put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from deqopt.adjoints import Adjoint
from deqopt.batch import leaves, pick, size_of
from deqopt.equilibrium import Equilibrium
from deqopt.errors import ProblemError
from deqopt.problem import JointProblem
from deqopt.solvers import JointSolver, solve_exactly
from deqopt.task import Task
from deqopt.weights import cached_weights

LOADERS = {"train": "fit", "val": "validate", "test": "test", "predict": "predict"}
MOST, LEAST = 6, 3


@dataclass
class Bench:
    """A task, and how it is solved and differentiated.

    Attributes:
        given: the batch to examine it on; None for those of its own loaders.
    """

    task: Task
    given: Any
    solver: JointSolver
    adjoint: Adjoint

    @property
    def device(self) -> torch.device:
        return next((part.device for part in self.task.parameters()), torch.device("cpu"))

    @cached_property
    def loaded(self) -> dict[str, Any]:
        """The first batch of every loader. A task that writes no predictions may be without one for predict."""
        data = self.task.datamodule()
        if not isinstance(data, LightningDataModule):
            raise ProblemError(f"datamodule() returned a {type(data).__name__}, expected a LightningDataModule")
        data.prepare_data()
        batches = {}
        for stage, phase in LOADERS.items():
            if not is_overridden(f"{stage}_dataloader", data, LightningDataModule):
                if stage == "predict" and not self.predicts:
                    continue
                because = ": the task defines write_predictions()" if stage == "predict" else ""
                raise ProblemError(f"the data module has no {stage}_dataloader, which deqopt {phase} needs{because}")
            data.setup(phase)
            loader = getattr(data, f"{stage}_dataloader")()
            if isinstance(loader, (list, tuple, dict)):
                raise ProblemError(f"{stage}_dataloader returned a {type(loader).__name__}, expected one loader")
            batch = next(iter(loader), None)
            if batch is None:
                raise ProblemError(f"{stage}_dataloader gives no batch")
            if not any(leaf.dim() for leaf in leaves(batch)):
                raise ProblemError(
                    f"{stage}_dataloader gives a {type(batch).__name__} without tensors of a batch; expected a tensor, "
                    "or a tuple, list or dict of such"
                )
            batches[stage] = batch
            data.teardown(phase)
        return batches

    @property
    def predicts(self) -> bool:
        """Whether the task defines ``write_predictions()``."""
        return type(self.task).write_predictions is not Task.write_predictions

    def batch(self, stage: str = "test") -> Any:
        """At most ``MOST`` samples, on the task's device.

        Raises:
            ProblemError: fewer than ``LEAST``.
        """
        batch = self.loaded[stage] if self.given is None else self.given
        size = size_of(batch)
        if size < LEAST:
            raise ProblemError(
                f"the {'given' if self.given is not None else stage} batch has {size} samples: "
                f"{LEAST} at least are needed to tell whether they are kept apart"
            )
        return move_data_to_device(pick(batch, torch.arange(size) < MOST), self.device)

    def solve(self, batch: Any, adjoint: Adjoint | None = None) -> tuple[JointProblem, Equilibrium]:
        """As a training step does it."""
        problem = self.task.problem(batch)
        z0, x0 = self.task.start(batch)
        return problem, self.solver.solve(problem, z0, x0, adjoint=adjoint)

    def solve_exactly(self, batch: Any) -> Equilibrium:
        """As validation, test and prediction do it."""
        return solve_exactly(*self.solve(batch))

    @contextmanager
    def mode(self, training: bool) -> Iterator[None]:
        """Training or evaluation mode; afterwards modes, parameters and buffers are what they were before."""
        modes, state = self.modes(), self.state()
        self.task.train(training)
        try:
            with torch.enable_grad(), cached_weights(self.task):
                yield
        finally:
            for name, module in self.task.named_modules():
                module.training = modes.get(name, module.training)
            with torch.no_grad():
                for name, tensor in self._tensors():
                    tensor.copy_(state[name])

    def modes(self) -> dict[str, bool]:
        return {name: module.training for name, module in self.task.named_modules()}

    def state(self) -> dict[str, Tensor]:
        """A copy of parameters and buffers."""
        return {name: tensor.detach().clone() for name, tensor in self._tensors()}

    def _tensors(self) -> Sequence[tuple[str, Tensor]]:
        return [*self.task.named_parameters(), *self.task.named_buffers()]
