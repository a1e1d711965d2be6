"""The joint method in a race: a task with a solver and an adjoint, trained by what `JointModule` differentiates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.training.race import Contestant
from deqopt import JointModule, Task
from deqopt.adjoints import Adjoint, Envelope
from deqopt.equilibrium import BackwardReport
from deqopt.regularizers import Regularizer
from deqopt.solvers import JointSolver


@dataclass(frozen=True)
class JointMethod:
    """What distinguishes a method from the others of its race; its settings were chosen on validation samples.

    Attributes:
        label: in tables and pictures.
        solver: finds the solution that is trained on, and the one that is tested.
        adjoint: takes the gradient to theta.
        task: settings of the task that differ from the recipe's.
    """

    label: str
    solver: JointSolver
    adjoint: Adjoint = field(default_factory=Envelope)
    task: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """What the methods of a race share.

    Attributes:
        lr: the highest learning rate of Adam.
        clip: the largest norm of a gradient to theta.
        penalty: added to the loss.
        task: settings of the task.
    """

    lr: float
    clip: float
    penalty: Regularizer
    task: Mapping[str, Any]


class JointContestant(Contestant):
    """Trains a task by :meth:`deqopt.JointModule.loss_of`.

    Args:
        task: a new one.
        method: its solver and adjoint.
        recipe: how it is trained.
        draw: gives the batches of training.
        score: what the module reaches, by metric and sample; it is in evaluation mode.
    """

    def __init__(
        self,
        task: Task,
        method: JointMethod,
        recipe: Recipe,
        draw: Callable[[], Any],
        score: Callable[[JointModule], Mapping[str, Sequence[float]]],
    ) -> None:
        self.module = JointModule(task, method.solver, method.adjoint, [recipe.penalty])
        self.network = task
        self._recipe, self._draw, self._score = recipe, draw, score
        self._optimizer = torch.optim.Adam(task.parameters())
        self._reports: list[BackwardReport] = []

    def next_batch(self) -> Any:
        return self._draw()

    def step(self, batch: Any, rate: float) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = rate * self._recipe.lr
        self._optimizer.zero_grad()
        loss = self.module.loss_of(batch)
        loss.total.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self._recipe.clip)
        self._optimizer.step()
        if loss.solved is not None and loss.solved.backward is not None:
            self._reports.append(loss.solved.backward)
        return loss.total.detach() * norm / norm if loss.samples else torch.tensor(torch.nan)

    def scores(self) -> Mapping[str, Sequence[float]]:
        self.module.eval()
        return self._score(self.module)

    def notes(self) -> Mapping[str, float]:
        """How the linear systems behind the gradients were solved: see :func:`backward_notes`."""
        return backward_notes(self._reports)


def backward_notes(reports: Sequence[BackwardReport]) -> dict[str, float]:
    """Means over the steps that solved a linear system: its residual and the products that it took, a sample, and the
    share of the samples that ended above the adjoint's tolerance. Empty where no step did."""
    steps = [figures for figures in (one.figures() for one in reports) if "residual" in figures]
    if not steps:
        return {}
    residual, products, solved = (fmean(float(one[name]) for one in steps) for name in ("residual", "nfe", "converged"))
    return {"backward residual": residual, "backward products": products, "backward unsolved": 1 - solved}


def sample_scores(task: Task, batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, list[float]]:
    """The metrics of a task for every sample of batches of predictions and targets."""
    found = {}
    for name, metric in task.metrics().items():
        pairs = [(a, b) for prediction, target in batches for a, b in zip(prediction, target, strict=True)]
        found[name] = [float(metric(a[None].detach(), b[None])) for a, b in pairs]
    return found
