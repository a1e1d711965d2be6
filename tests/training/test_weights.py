"""Parametrised weights: computed once a step, and trained also where ``no_grad`` sees them first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from deqopt import JointModule, JointProblem
from deqopt.solvers import Tracking
from deqopt.weights import cached_weights
from hooks import On, gradients_of, ran
from tiny_task import Batch, Tiny

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


def first_gradients(module: JointModule, directory: Path) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    note = On(on_after_backward=lambda trainer, module: seen.update(gradients_of(module.task)))
    ran(module, directory, note, max_steps=1)
    return seen


@pytest.mark.parametrize("kind", [StartsAtTheCell, LooksAhead])
def test_a_cell_that_no_grad_sees_first_is_trained(tmp_path: Path, kind: type[StartsAtTheCell]) -> None:
    torch.manual_seed(0)
    task = kind()
    seen = first_gradients(JointModule(task, solver=SOLVER), tmp_path)
    assert seen.keys() == dict(task.named_parameters()).keys() and any("parametrizations" in name for name in seen)
    assert all(gradient.abs().max() > 0 for gradient in seen.values())


def test_its_gradient_is_that_without_a_cache(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = StartsAtTheCell()
    batch = next(iter(task.datamodule().batches()))
    module = JointModule(task, solver=SOLVER)
    _, found = module.solve(batch, module.adjoint)
    want = torch.autograd.grad(task.loss(found, batch).mean(), list(task.parameters()))
    torch.testing.assert_close(tuple(first_gradients(module, tmp_path).values()), want)


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
