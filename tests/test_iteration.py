"""The one loop, driven by scripted residuals and objectives."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from deqopt.iteration import Outcome, Status, iterate


@dataclass(frozen=True)
class Scripted:
    residual: Tensor
    merit: Tensor
    objective: Tensor


def play(residuals: list[list[float]], merits: list[list[float]], **settings: int) -> Outcome:
    """Iterate over points numbered 0, 1, 2, ... with the residuals and merits of ``[sample][point]``."""
    calls = 0

    def evaluate(w: Tensor) -> Scripted:
        nonlocal calls
        calls += 1
        at = w[:, 0].long().tolist()
        residual, merit = (
            torch.tensor([row[i] for row, i in zip(rows, at, strict=True)]) for rows in (residuals, merits)
        )
        return Scripted(residual, merit, -merit)

    def step(w: Tensor, _: Scripted) -> Tensor:
        return w + 1

    start = torch.zeros(len(residuals), 1)
    outcome = iterate(evaluate, step, start, max_nfe=len(residuals[0]), tol=0.01, record=True, **settings)
    assert calls == outcome.nfe.max()
    return outcome


@pytest.mark.parametrize(
    ("residuals", "merits", "best", "status", "nfe"),
    [
        pytest.param([3, 2, 1], [3, 2, 1], 2, Status.OUT_OF_BUDGET, 3, id="falling"),
        pytest.param([3, 2, 1], [1, 2, 3], 0, Status.OUT_OF_BUDGET, 3, id="rising"),
        pytest.param([1, 2, 3], [3, 1, 2], 1, Status.OUT_OF_BUDGET, 3, id="lowest in the middle"),
        pytest.param([1, 1, 1], [-3, -9, -5], 1, Status.OUT_OF_BUDGET, 3, id="negative"),
        pytest.param([1, 0.01, 0], [1, 9, 0], 1, Status.CONVERGED, 2, id="converged at the tolerance"),
        pytest.param([1, torch.nan, 0], [1, 0, 0], 0, Status.DIVERGED, 2, id="residual becomes NaN"),
        pytest.param([1, 0.5, 0], [1, -torch.inf, 1], 0, Status.DIVERGED, 2, id="merit becomes infinite"),
        pytest.param([torch.nan, 0, 0], [1, 1, 1], 0, Status.NON_FINITE, 1, id="NaN at the start"),
        pytest.param([0, torch.nan, 0], [torch.nan, 1, 1], 0, Status.NON_FINITE, 1, id="only the merit is NaN"),
    ],
)
def test_best_iterate_and_status(
    residuals: list[float], merits: list[float], best: int, status: Status, nfe: int
) -> None:
    outcome = play([residuals, [2, 2, 2]], [merits, [0, 1, 2]])
    assert outcome.w[0].item() == best
    assert outcome.status[0] == status
    assert outcome.nfe.tolist() == [nfe, 3]
    assert outcome.w[1].item() == 0, "the neighbour keeps its first point"
    if status != Status.NON_FINITE:
        assert outcome.residual[0].item() == pytest.approx(residuals[best])
        assert outcome.objective[0].item() == pytest.approx(-merits[best])


@pytest.mark.parametrize("count", [1, 4, 7, 50])
def test_visits_are_points_of_the_trajectory(count: int) -> None:
    outcome = play([[1.0] * 20], [[1.0] * 20], visits=count)
    numbers = outcome.visited.flatten().tolist()
    assert len(numbers) == min(count, 20) == len(set(numbers))
    assert set(numbers) <= set(range(20))


def test_visits_are_spread_evenly() -> None:
    counts = torch.zeros(10)
    for _ in range(600):
        counts[int(play([[1.0] * 10], [[1.0] * 10], visits=1).visited)] += 1
    expected, deviation = 60, (600 * 0.1 * 0.9) ** 0.5
    assert (counts - expected).abs().max() < 4.5 * deviation


@pytest.mark.parametrize("end", [1e30, torch.nan, torch.inf])
def test_visits_of_a_lost_sample_stay_finite(end: float) -> None:
    """A penalty is taken at the visits of every sample that had a finite start."""

    def evaluate(w: Tensor) -> Scripted:
        return Scripted(w[:, 0].abs() + 1, w[:, 0], w[:, 0])

    def step(w: Tensor, _: Scripted) -> Tensor:
        return torch.stack([w[0] + 1, torch.where(w[1] < 4, w[1] + 1, end)])

    outcome = iterate(evaluate, step, torch.ones(2, 1), max_nfe=9, tol=0, visits=9)
    assert outcome.status.tolist() == [Status.OUT_OF_BUDGET, Status.DIVERGED]
    assert outcome.visited[:, 0, 0].tolist() == list(range(1, 10))
    assert outcome.visited[:, 1, 0].tolist() == [1, 2, 3, 4, 1, 1, 1, 1, 1]
