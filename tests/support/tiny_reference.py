"""The tiny task solved by other methods, to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from tiny_task import WEIGHT_OF_X, Tiny


def solved_z(task: Tiny, x: Tensor) -> Tensor:
    """``z = f(z, x)`` by plain iteration of a contractive cell; differentiable in x and theta."""
    z = x.new_zeros(len(x), task.cell.state.in_features)
    for _ in range(120):
        z = task.cell(z, x)
    return z


def best_x(task: Tiny, y: Tensor) -> Tensor:
    """The x of the least ``J(z(x), x)`` by L-BFGS through the unrolled iteration."""
    x = y.new_zeros(len(y), task.cell.input.in_features).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [x], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(task, solved_z(task, x), x, y).sum()
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
    task.zero_grad()
    return x.detach()


def objective(task: Tiny, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return (z @ task.head.weight.T - y).square().sum(1) + WEIGHT_OF_X * x.square().sum(1)
