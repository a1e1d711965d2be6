"""The memory of Anderson mixing: what it proposes, and what singular histories do to it."""

import pytest
import torch

from deqopt.fixed_point import Anderson, AndersonMixing, MixingType


@pytest.mark.parametrize("kind", MixingType)
def test_anderson_meets_the_secant_condition_of_its_kind(kind: MixingType) -> None:
    """After three points, the mixture of the residuals is orthogonal to Y (type II) or to S (type I)."""
    a, w = torch.randn(6, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    a = 0.9 * a / torch.linalg.matrix_norm(a, 2)
    mixing = AndersonMixing(w, history_size=3, ridge=0.0, widths=[6], kind=kind)
    points, residuals = [], []
    for _ in range(3):
        points.append(w)
        image = torch.tanh(w @ a + 1)
        residuals.append(image - w)
        w = mixing.mix(w, image, 1.0)
    s = torch.stack([points[1] - points[0], points[2] - points[1]], 2)
    y = torch.stack([residuals[1] - residuals[0], residuals[2] - residuals[1]], 2)
    gamma = torch.linalg.lstsq(s + y, (points[2] + residuals[2] - w).unsqueeze(2)).solution
    left = residuals[2].unsqueeze(2) - y @ gamma
    against = y if kind is MixingType.II else s
    cosine = (against.mT @ left).squeeze(2) / against.norm(dim=1) / left.norm(dim=1)
    assert cosine.abs().max() < 1e-4


@pytest.mark.parametrize("size", [1, 5, 10])
def test_a_singular_history_is_harmless(size: int) -> None:
    """More points than dimensions, and steps that do not move any more."""
    solver = Anderson(max_nfe=60, tol=0, history_size=size)
    solution = solver.solve(lambda z: 0.3 * z + 1, torch.zeros(2, 1, dtype=torch.float64))  # type: ignore[operator]
    assert torch.allclose(torch.as_tensor(solution.z), torch.full((2, 1), 1 / 0.7, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixing_at_a_fixed_point_stays_there(dtype: torch.dtype) -> None:
    w = torch.tensor([[2.0, -1.0, 3.0], [0.0, 0.0, 0.0]], dtype=dtype)
    mixing = AndersonMixing(w, history_size=10, ridge=1e-8, widths=[1, 2])
    for _ in range(12):
        assert torch.allclose(mixing.mix(w, w, 1.0), w, rtol=1e-6)


@pytest.mark.parametrize("ridge", [0.0, 1e-8])
def test_mixing_of_repeated_points_stays_between_them(ridge: float) -> None:
    w, target = torch.zeros(1, 4), torch.ones(1, 4)
    mixing = AndersonMixing(w, history_size=5, ridge=ridge, widths=[4])
    for _ in range(8):
        assert torch.allclose(mixing.mix(w, target, 1.0), target, atol=1e-5)
