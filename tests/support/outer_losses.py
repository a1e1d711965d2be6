"""An outer loss that has nothing to do with the inner objective, and solves to the last digit to take it at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from catalogue import Case, flat
from deqopt import Equilibrium
from deqopt.adjoints import Adjoint, Implicit
from deqopt.solvers import JointAnderson

EXACT = JointAnderson(max_nfe=800, tol=1e-13, history_size=12)
PRECISE = Implicit(tol=1e-11)


def weights(rows: int, *widths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(rows, width, generator=generator, dtype=torch.float64) for width in widths]


def outer_loss(z: Tensor, x: Tensor, mu: Tensor, rows: Any = slice(None)) -> Tensor:
    """Something that has nothing to do with the inner objective; (B,)."""
    c_z, c_x, c_mu = (one[rows] for one in weights(5, z.shape[1], x.shape[1], mu.shape[1]))
    return (c_z * z.sin()).sum(1) + (c_x * x).sum(1) + (z[:, :2] * x[:, :2]).sum(1) + 0.3 * (c_mu * mu).square().sum(1)


def loss_of(found: Equilibrium, rows: Any = slice(None)) -> Tensor:
    return outer_loss(flat(found.z), flat(found.x), flat(found.mu), rows)


def slopes(value: Callable[..., Tensor], at: Sequence[Tensor], eps: float) -> list[tuple[Tensor, Tensor]]:
    """A random direction of every part, and the derivative of ``value(*at)`` along it by central differences."""
    found = []
    for i, along in enumerate(map(torch.randn_like, at)):
        above, below = (
            value(*((part + step * along if j == i else part).detach().requires_grad_() for j, part in enumerate(at)))
            for step in (eps, -eps)
        )
        found.append((along.detach(), (above - below).detach() / (2 * eps)))
    return found


def check_slopes(
    value: Callable[..., Tensor],
    at: Sequence[Tensor],
    gradients: Sequence[Tensor],
    eps: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-6,
) -> None:
    """Gradients of ``value(*at)`` against :func:`slopes`."""
    for gradient, (direction, want) in zip(gradients, slopes(value, at, eps), strict=True):
        torch.testing.assert_close((gradient * direction).sum(), want, rtol=rtol, atol=atol)


def solved(case: Case, adjoint: Adjoint | None = None, start: Equilibrium | None = None) -> Equilibrium:
    if start is None:
        found = EXACT.solve(case.problem, case.z0, case.x0, adjoint=adjoint)
    else:
        found = EXACT.solve(case.problem, start.z, start.x, mu0=start.mu, adjoint=adjoint)
    assert (found.residual < 1e-11).all()
    return found


def close(got: tuple[Tensor, ...], want: tuple[Tensor, ...], tol: float) -> bool:
    return all(
        torch.allclose(one, other, rtol=tol, atol=tol * float(other.abs().max()))
        for one, other in zip(got, want, strict=True)
    )
