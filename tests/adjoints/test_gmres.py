"""GMRES for a batch of independent systems: against direct solves, and against what may go wrong in one of them."""

import pytest
import torch
from torch import Tensor

from deqopt.adjoints.gmres import LinearSolution, gmres

SIZE = 30


def systems(batch: int = 4, contraction: float = 0.7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, SIZE, SIZE, generator=generator, dtype=torch.float64) / SIZE**0.5
    return contraction * noise - torch.eye(SIZE, dtype=torch.float64), torch.randn(
        batch, SIZE, generator=generator, dtype=torch.float64
    )


def solve(matrix: Tensor, b: Tensor, tol: float = 1e-11, max_nfe: int = 200, restart: int = 200) -> LinearSolution:
    return gmres(lambda u: torch.einsum("bij,bj->bi", matrix, u), b, tol=tol, max_nfe=max_nfe, restart=restart)


@pytest.mark.parametrize("restart", [200, 40, 20])
def test_a_direct_solve(restart: int) -> None:
    matrix, b = systems(contraction=0.4)
    found = solve(matrix, b, restart=restart)
    assert torch.allclose(found.u, torch.linalg.solve(matrix, b), rtol=1e-8, atol=1e-9)
    assert (found.residual <= 1e-11).all()


def test_no_more_products_than_dimensions() -> None:
    """And one for the measured residual. A rank-two departure from the identity takes three."""
    matrix, b = systems(contraction=3.0)
    assert (solve(matrix, b).nfe <= SIZE + 1).all()
    low = -torch.eye(SIZE, dtype=torch.float64) + matrix[:, :, :2] @ matrix[:, :2, :]
    assert (solve(low, b).nfe <= 4).all()


def test_the_residual_is_the_least_of_the_krylov_space() -> None:
    matrix, b = systems(contraction=1.5)
    found = solve(matrix, b, max_nfe=8)
    for a, right, u in zip(matrix, b, found.u, strict=True):
        krylov = torch.stack([torch.linalg.matrix_power(a, i) @ right for i in range(7)], dim=1)
        best = krylov @ torch.linalg.lstsq(a @ krylov, right[:, None]).solution.squeeze(1)
        assert torch.allclose(right - a @ u, right - a @ best, atol=1e-7)
    assert torch.allclose(found.residual, (b - torch.einsum("bij,bj->bi", matrix, found.u)).norm(dim=1) / b.norm(dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_is_solved_as_it_is_alone(dtype: torch.dtype) -> None:
    matrix, b = (part.to(dtype) for part in systems(contraction=0.8))
    together = solve(matrix, b, tol=1e-4)
    for i in range(len(b)):
        alone = solve(matrix[i : i + 1], b[i : i + 1], tol=1e-4)
        assert alone.nfe[0] == together.nfe[i]
        assert torch.allclose(alone.u[0], together.u[i], rtol=1e-4, atol=1e-5)


def test_rows_stop_by_themselves() -> None:
    matrix, b = systems()
    matrix[1] = -2 * torch.eye(SIZE, dtype=torch.float64)
    b[2] = 0
    found = solve(matrix, b)
    assert found.nfe[1] == 2 and found.nfe[2] == 0 and (found.nfe[[0, 3]] > 10).all()
    assert torch.equal(found.u[2], torch.zeros(SIZE, dtype=torch.float64)) and found.residual[2] == 0


@pytest.mark.parametrize("kind", ["zero", "singular", "nilpotent", "huge", "nan", "nan on the right", "inf"])
def test_a_hopeless_row_leaves_the_others_bit_by_bit(kind: str) -> None:
    matrix, b = systems()
    sane = solve(matrix, b)
    if kind == "zero":
        matrix[1] = 0
    elif kind == "singular":
        matrix[1, :, 0] = matrix[1, :, 1]
    elif kind == "nilpotent":
        matrix[1] = torch.diag(torch.ones(SIZE - 1, dtype=torch.float64), 1)
    elif kind == "huge":
        matrix[1] *= 1e200
    elif kind == "nan on the right":
        b[1, 3] = torch.nan
    else:
        matrix[1, 2, 5] = torch.nan if kind == "nan" else torch.inf
    found = solve(matrix, b)
    others = [0, 2, 3]
    assert torch.equal(found.u[others], sane.u[others]) and torch.equal(found.nfe[others], sane.nfe[others])
    assert found.u.isfinite().all()
    hopeless = kind in ("zero", "singular", "nan", "nan on the right", "inf")
    assert not hopeless or not found.residual[1] <= 1e-11, "and its residual says so"


@pytest.mark.parametrize("max_nfe", [2, 3, 9])
def test_the_budget_is_kept(max_nfe: int) -> None:
    matrix, b = systems(contraction=2.0)
    calls = 0

    def product(u: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.einsum("bij,bj->bi", matrix, u)

    found = gmres(product, b, tol=1e-11, max_nfe=max_nfe, restart=3)
    assert calls <= max_nfe and (found.nfe == calls).all() and (found.residual < 1).all()


def test_an_update_that_is_worse_is_not_taken() -> None:
    """Where products are wrong by rounding: here that by which the update is measured is ten times too long."""
    matrix, b = systems()
    for wrong in (1, 3):
        calls = 0

        def product(u: Tensor, wrong: int = wrong) -> Tensor:
            nonlocal calls
            calls += 1
            length = torch.tensor([1.0, -10.0 if calls > wrong else 1.0, 1.0, 1.0], dtype=torch.float64)
            return length[:, None] * torch.einsum("bij,bj->bi", matrix, u)

        found = gmres(product, b, tol=1e-11, max_nfe=40, restart=wrong)
        assert found.residual[1] == 1 and not found.u[1].any(), "as good as none at all"
        assert (found.residual[[0, 2, 3]] < 1).all() and found.u[[0, 2, 3]].any(1).all()
