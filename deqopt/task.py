"""Task: the class to subclass. It defines the problem that a batch poses, and the loss that training minimises."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import Metric

from deqopt.adjoints import Adjoint, Envelope
from deqopt.equilibrium import Equilibrium
from deqopt.errors import ProblemError
from deqopt.problem import JointProblem
from deqopt.solvers import JointSolver, SecantTracking
from deqopt.state import State


class Task(nn.Module, ABC):
    """An application of the joint problem: its data, its networks, its losses.

    A subclass is a module: it holds the networks whose parameters are theta. It must define ``datamodule``, ``start``
    and ``problem``; everything else has defaults. Arguments of ``__init__`` should be plain values (numbers, strings,
    lists): they become options of the command line, and a checkpoint rebuilds the task from them.

    Example:
        See "A task of your own" in the README.

    Example:
        >>> import torch
        >>> from lightning.pytorch import LightningDataModule
        >>> from torch.utils.data import TensorDataset
        >>> from deqopt import JointProblem, Task
        >>> class Halves(Task):
        ...     def __init__(self, states: int = 4) -> None:
        ...         super().__init__()
        ...         self.states, self.cell = states, torch.nn.Linear(states, states)
        ...     def datamodule(self):
        ...         readings = TensorDataset(torch.rand(64, self.states))
        ...         return LightningDataModule.from_datasets(readings, readings, batch_size=16)
        ...     def start(self, batch):
        ...         return torch.zeros_like(batch[0]), torch.zeros_like(batch[0])
        ...     def problem(self, batch):
        ...         cell = lambda z, x: torch.tanh(self.cell(z) + x)
        ...         return JointProblem(cell, lambda z, x: (z - batch[0]).square().sum(1))
        >>> Halves(states=8).init_args
        {'states': 8}

        The README has a task that trains, in "A task of your own".
    """

    init_args: dict[str, Any]
    """The arguments that the task was created with; a checkpoint needs them to rebuild the task."""

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        for name in ("default_solver", "default_adjoint"):
            if name in vars(cls) and not isinstance(vars(cls)[name], (classmethod, staticmethod)):
                raise ProblemError(
                    f"{cls.__name__}.{name} must be a class method, because it is called before a task exists: write "
                    "@classmethod above it, and cls for self"
                )

    def __new__(cls, *args: Any, **kwargs: Any) -> Task:
        task = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(task, *args, **kwargs)
        bound.apply_defaults()
        given = dict(list(bound.arguments.items())[1:])
        task.__dict__["init_args"] = given
        return task

    @classmethod
    def default_solver(cls) -> JointSolver:
        """The solver that is used unless the user chooses one; by default ``SecantTracking()``."""
        return SecantTracking()

    @classmethod
    def default_adjoint(cls) -> Adjoint:
        """The adjoint that is used unless the user chooses one; by default ``Envelope()``, for losses that depend
        on the objective alone. A task with another loss should return ``Unrolled()`` or ``Implicit()``."""
        return Envelope()

    @abstractmethod
    def datamodule(self) -> LightningDataModule:
        """The data: loaders for fit, validate, test and predict."""

    @abstractmethod
    def start(self, batch: Any) -> tuple[State, Tensor]:
        """The start ``(z0, x0)`` of the solve of a batch: (B, *state), or a tuple of such tensors, and (B, *input)."""

    @abstractmethod
    def problem(self, batch: Any) -> JointProblem:
        """The joint problem of this batch."""

    def loss(self, equilibrium: Equilibrium, batch: Any) -> Tensor:
        """(B,) the outer loss of every sample. By default the inner objective, with the gradient of the envelope
        theorem."""
        return equilibrium.objective

    def metrics(self) -> Mapping[str, Metric]:
        """New metrics by name, which are updated with the values of :meth:`outcome`. By default none."""
        return {}

    def outcome(self, equilibrium: Equilibrium, batch: Any) -> tuple[Tensor, Tensor]:
        """Prediction and target for :meth:`metrics`, batch first. Required if there are metrics."""
        raise ProblemError(f"{type(self).__name__} has metrics, so it must define outcome()")

    def figures(self, equilibrium: Equilibrium, batch: Any) -> Mapping[str, Figure]:
        """Pictures of a solved batch by file name (without suffix). By default none."""
        return {}

    def callbacks(self) -> list[Callback]:
        """Lightning callbacks that belong to this task. By default none."""
        return []

    def prediction_directory(self) -> Path | None:
        """The folder that ``deqopt predict`` writes to. None (the default) is the folder ``predictions`` of the run."""
        return None

    def write_predictions(self, equilibrium: Equilibrium, batch: Any, directory: Path) -> list[Path]:
        """Write the output files of ``deqopt predict`` for a batch; returns the written files."""
        raise ProblemError(f"{type(self).__name__} does not define write_predictions(), which predict needs")
