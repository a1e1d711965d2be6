"""Parametrised weights: computed once a step, and trained also where ``no_grad`` sees them first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from deqopt import JointModule, JointProblem
from deqopt.solvers import Tracking
from deqopt.weights import cached_weights
from tiny_task import Batch, Tiny, quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]
SOLVER = Tracking(max_nfe=20, step_size=0.3)


class StartsAtTheCell(Tiny):
    """A weight-normalised cell, which the start sees first, under ``no_grad``: z0 = f(0, x0)."""

    def __init__(self, normalised: bool = True) -> None:
        super().__init__()
        for linear in (self.cell.state, self.cell.input) if normalised else ():
            parametrizations.weight_norm(linear)

    def start(self, batch: Batch) -> tuple[Tensor, Tensor]:
        z0, x0 = super().start(batch)
        with torch.no_grad():
            return self.cell(z0, x0), x0


class LooksAhead(StartsAtTheCell):
    """The same where it is the problem that looks at the cell under ``no_grad``."""

    def problem(self, batch: Batch) -> JointProblem:
        with torch.no_grad():
            self.cell(*Tiny.start(self, batch))
        return super().problem(batch)


class Gradients(Callback):
    def __init__(self) -> None:
        self.seen: dict[str, Tensor | None] = {}

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self.seen = {name: None if p.grad is None else p.grad.clone() for name, p in pl_module.task.named_parameters()}


@pytest.mark.parametrize("kind", [StartsAtTheCell, LooksAhead])
def test_a_cell_that_no_grad_sees_first_is_trained(tmp_path: Path, kind: type[StartsAtTheCell]) -> None:
    torch.manual_seed(0)
    task, watch = kind(), Gradients()
    quiet_trainer(tmp_path, max_steps=1, callbacks=[watch]).fit(
        JointModule(task, solver=SOLVER), datamodule=task.datamodule()
    )
    assert any("parametrizations" in name for name in watch.seen)
    for name, gradient in watch.seen.items():
        assert gradient is not None and gradient.abs().max() > 0, name


def test_its_gradient_is_that_without_a_cache(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task, watch = StartsAtTheCell(), Gradients()
    batch = next(iter(task.datamodule().batches()))
    module = JointModule(task, solver=SOLVER)
    _, found = module.solve(batch, module.adjoint)
    want = torch.autograd.grad(task.loss(found, batch).mean(), list(task.parameters()))
    quiet_trainer(tmp_path, max_steps=1, callbacks=[watch]).fit(module, datamodule=task.datamodule())
    for got, one in zip(watch.seen.values(), want, strict=True):
        torch.testing.assert_close(got, one)


def test_weights_are_computed_once_and_with_a_graph() -> None:
    calls: list[int] = []

    class Halved(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            calls.append(1)
            return weight / 2

    linear = nn.Linear(3, 3)
    parametrize.register_parametrization(linear, "weight", Halved())
    calls.clear()
    with torch.no_grad(), cached_weights(linear):
        first, second = linear.weight, linear.weight
        assert first is second and first.requires_grad and len(calls) == 1
    assert not parametrize._cache
