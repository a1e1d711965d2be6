"""Restarted GMRES (Saad and Schultz 1986) for a batch of independent linear systems, one per row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Memory for the basis is allocated for this many vectors, and doubled whenever it is full.
_FIRST_VECTORS = 31


@dataclass(frozen=True)
class LinearSolution:
    """``A u = b`` up to ``residual``.

    Attributes:
        u: (B, width).
        residual: (B,) ``|b - A u| / |b|``, measured with an additional product; 0 where b is 0.
        nfe: (B,) products with A.
    """

    u: Tensor
    residual: Tensor
    nfe: Tensor


def gmres(product: Callable[[Tensor], Tensor], b: Tensor, *, tol: float, max_nfe: int, restart: int) -> LinearSolution:
    """The u of least residual in the Krylov space of ``b``, row by row. Rows that are not finite get u = 0 and a
    residual of NaN.

    Every row has its own coefficients and stops independently: no row can spoil another row.

    Args:
        product: function that returns ``A u`` for rows (B, width); must not couple rows.
        b: (B, width).
        tol: tolerance of the relative residual.
        max_nfe: largest number of products, at least 2.
        restart: number of vectors of the size of b that are kept before the method restarts from its current u.
    """
    given = b.isfinite().all(1)
    b = b.masked_fill(~given[:, None], 0)
    length = _norm(b)
    u, remainder = torch.zeros_like(b), b
    residual = (length > 0).to(b.dtype)
    nfe = torch.zeros(len(b), dtype=torch.long, device=b.device)
    active, spent = residual > tol, 0
    while spent + 2 <= max_nfe and bool(active.any()):
        goal = tol * length / _norm(remainder).clamp_min(torch.finfo(b.dtype).tiny)
        update, products = _cycle(product, remainder, active, goal, min(restart, max_nfe - spent - 1))
        proposal = u + update
        left = b - product(proposal)
        measured = _norm(left) / length
        better = active & (measured < residual)
        u = torch.where(better[:, None], proposal, u)
        remainder = torch.where(better[:, None], left, remainder)
        residual = torch.where(better, measured, residual)
        nfe = nfe + torch.where(active, products + 1, 0)
        spent += int(products.max()) + 1
        active = better & (residual > tol)
    return LinearSolution(u, torch.where(given, residual, torch.nan), nfe)


def _cycle(
    product: Callable[[Tensor], Tensor], b: Tensor, active: Tensor, goal: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """GMRES from 0 until ``|b - A u| <= goal |b|``, (B,), or for ``steps`` products. Returns u and the number of
    products, (B,).

    Arnoldi's relation is ``A V_k = V_{k+1} H``. H is kept as ``Q^T R``, so the last entry of ``Q |b| e_1`` is the
    residual. A finished row gets a column of the identity with 0 on the right-hand side, which adds nothing to u.
    """
    batch, width = b.shape
    tiny = torch.finfo(b.dtype).tiny
    beta = _norm(b)
    basis = b.new_zeros(batch, min(steps, _FIRST_VECTORS) + 1, width)
    basis[:, 0] = torch.where(active[:, None], b / beta.clamp_min(tiny)[:, None], 0)
    q = torch.eye(steps + 1, dtype=torch.float64, device=b.device).repeat(batch, 1, 1)
    r = torch.eye(steps, dtype=torch.float64, device=b.device).repeat(batch, 1, 1)
    right = q.new_zeros(batch, steps)
    last = active.to(q.dtype)
    products = torch.zeros(batch, dtype=torch.long, device=b.device)
    for k in range(steps):
        image = product(basis[:, k])
        products = products + active
        active = active & image.isfinite().all(1)
        image = torch.where(active[:, None], image, 0)
        size = _norm(image)
        known = basis[:, : k + 1]
        column = q.new_zeros(batch, k + 2)
        for _ in range(2):  # twice, or the basis loses its orthogonality
            overlap = torch.bmm(image.unsqueeze(1), known.mT)
            image = torch.baddbmm(image.unsqueeze(1), overlap, known, alpha=-1).squeeze(1)
            column[:, : k + 1] += overlap.squeeze(1)
        rest = _norm(image)
        column[:, k + 1] = rest
        column = torch.bmm(q[:, : k + 2, : k + 2], column.unsqueeze(2)).squeeze(2)
        pivot = torch.hypot(column[:, k], column[:, k + 1])
        active = active & (pivot > torch.finfo(b.dtype).eps * size)  # otherwise A is singular on the Krylov space
        cos, sin = torch.where(active, column[:, k : k + 2].mT / pivot, column.new_tensor([[1.0], [0.0]]))
        upper, lower = q[:, k].clone(), q[:, k + 1].clone()
        q[:, k] = cos[:, None] * upper + sin[:, None] * lower
        q[:, k + 1] = cos[:, None] * lower - sin[:, None] * upper
        r[:, :k, k] = torch.where(active[:, None], column[:, :k], 0)
        r[:, k, k] = torch.where(active, pivot, 1)
        right[:, k] = torch.where(active, cos * last, 0)
        last = torch.where(active, -sin * last, last)
        active = active & (last.abs() > goal) & (rest > 0)
        if k + 1 == basis.shape[1]:
            basis = torch.cat([basis, torch.zeros_like(basis)], dim=1)
        basis[:, k + 1] = torch.where(active[:, None], image / rest.clamp_min(tiny)[:, None], 0)
        if not bool(active.any()):
            break
    right = right * beta[:, None]
    y = torch.linalg.solve_triangular(r, right.unsqueeze(2), upper=True).to(b.dtype)
    used = min(steps, basis.shape[1])
    return torch.bmm(y.mT[:, :, :used], basis[:, :used]).squeeze(1), products


def _norm(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1)
