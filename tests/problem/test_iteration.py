"""The one loop, driven by scripted residuals and objectives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.iteration import Measured, Outcome, Status, iterate
from deqopt.loop_settings import LoopSettings, Norm
from deqopt.memory import Memory


@dataclass(frozen=True)
class Scripted(Measured):
    @classmethod
    def of(cls, w: Tensor, residual: Tensor, merit: Tensor, scope: float = 0.0) -> Scripted:
        """A point of that merit; the objective is minus the merit, and the distance makes up for it."""
        one = torch.ones_like(merit)
        return cls(w, w, residual, -merit, 2 * merit, one, scope * one, merit[:, None])


class Confident:
    """A system whose residuals need no second look."""

    def confirm(self, at: Scripted, claimed: Tensor) -> Scripted:
        return at


@dataclass
class Script(Confident):
    """Points ``[sample, point]`` with residuals and merits ``[sample][point]``; the objective is minus the merit.

    ``separable`` scripts can be had for some of their samples, and ``batches`` says how many were evaluated.
    """

    residuals: Tensor
    merits: Tensor
    batches: list[int]
    separable: bool = False
    scope: float = 1.0

    @classmethod
    def of(cls, residuals: list[list[float]], merits: list[list[float]], separable: bool = False) -> Script:
        return cls(torch.tensor(residuals), torch.tensor(merits), [], separable)

    def evaluate(self, w: Tensor) -> Scripted:
        self.batches.append(len(w))
        at = w[:, -1:].long()
        residual, merit = self.residuals.gather(1, at)[:, 0], self.merits.gather(1, at)[:, 0]
        return Scripted.of(w, residual, merit, self.scope)

    def pick(self, keep: Tensor) -> Script | None:
        return (
            Script(self.residuals[keep], self.merits[keep], self.batches, True, self.scope) if self.separable else None
        )

    @property
    def start(self) -> Tensor:
        """Every row says which sample it is, and that it is at point 0."""
        return torch.stack([torch.arange(len(self.merits)).float(), torch.zeros(len(self.merits))], 1)


class Steps(Memory):
    """Counts the steps of a row since it was empty."""

    def __init__(self, w: Tensor, price: int = 0) -> None:
        super().__init__(w)
        self.count = torch.zeros(len(w))
        self.price = price
        self.cost = 1 + price


def advance(_: Any, at: Scripted, memory: Any) -> Tensor:
    memory.count = memory.count + 1
    if memory.price:
        memory.spent = torch.full((len(at.point),), memory.price)
    return at.point + torch.tensor([0.0, 1.0])


def play(script: Script, memory: Memory | None = None, visits: int = 0, **settings: Any) -> Outcome:
    settings = {"max_nfe": script.residuals.shape[1], "tol": 0.01, "restarts": 0} | settings
    w = script.start
    return iterate(script, advance, memory or Steps(w), w, LoopSettings(**settings), record=True, visits=visits)


@pytest.mark.parametrize(
    ("residuals", "merits", "best", "status", "nfe"),
    [
        pytest.param([3, 2, 1], [3, 2, 1], 2, Status.OUT_OF_BUDGET, 3, id="falling"),
        pytest.param([3, 2, 1], [1, 2, 3], 0, Status.OUT_OF_BUDGET, 3, id="rising"),
        pytest.param([1, 2, 3], [3, 1, 2], 1, Status.OUT_OF_BUDGET, 3, id="lowest in the middle"),
        pytest.param([1, 1, 1], [-3, -9, -5], 1, Status.OUT_OF_BUDGET, 3, id="negative"),
        pytest.param([1, 0.01, 0], [1, 0.9, 0], 1, Status.CONVERGED, 2, id="converged at the tolerance"),
        pytest.param([1, 0.01, 0], [1, 9, 0], 0, Status.TRAPPED, 2, id="converged at a worse point"),
        pytest.param([1, torch.nan, 0], [1, 0, 0], 0, Status.DIVERGED, 2, id="residual becomes NaN"),
        pytest.param([1, 0.5, 0], [1, -torch.inf, 1], 0, Status.DIVERGED, 2, id="merit becomes infinite"),
        pytest.param([torch.nan, 0, 0], [1, 1, 1], 0, Status.NON_FINITE, 1, id="NaN at the start"),
        pytest.param([0, torch.nan, 0], [torch.nan, 1, 1], 0, Status.NON_FINITE, 1, id="only the merit is NaN"),
    ],
)
@pytest.mark.parametrize("separable", [False, True])
def test_best_iterate_and_status(
    residuals: list[float], merits: list[float], best: int, status: Status, nfe: int, separable: bool
) -> None:
    script = Script.of([residuals, [2, 2, 2]], [merits, [0, 1, 2]], separable)
    outcome = play(script)
    assert outcome.w[:, 1].tolist() == [best, 0], "the neighbour keeps its first point"
    assert outcome.status[0] == status
    assert outcome.nfe.tolist() == [nfe, 3]
    assert script.batches == [2] * 3 if not separable else [2] * nfe + [1] * (3 - nfe)
    if status != Status.NON_FINITE:
        assert outcome.residual[0].item() == pytest.approx(residuals[best])
        assert outcome.objective[0].item() == pytest.approx(-merits[best])


# -- visits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4, 7, 50])
def test_visits_are_points_of_the_trajectory(count: int) -> None:
    outcome = play(Script.of([[1.0] * 20], [[1.0] * 20]), visits=count)
    numbers = outcome.visited[:, 0, 1].tolist()
    assert len(numbers) == min(count, 19) == len(set(numbers))
    assert set(numbers) <= set(range(1, 20)), "all but the start"


def test_visits_are_spread_evenly() -> None:
    counts = torch.zeros(10)
    for _ in range(600):
        counts[int(play(Script.of([[1.0] * 11], [[1.0] * 11]), visits=1).visited[0, 0, 1]) - 1] += 1
    expected, deviation = 60, (600 * 0.1 * 0.9) ** 0.5
    assert (counts - expected).abs().max() < 4.5 * deviation


@dataclass(frozen=True)
class Heights(Confident):
    """The merit of a row is its only entry; no row ever converges."""

    def evaluate(self, w: Tensor) -> Scripted:
        return Scripted.of(w, w[:, 0].abs() + 1, w[:, 0])

    def pick(self, keep: Tensor) -> None:
        return None


@pytest.mark.parametrize("end", [1e30, torch.nan, torch.inf])
def test_visits_of_a_lost_sample_stay_finite(end: float) -> None:
    """A penalty is taken at the visits of every sample that had a finite start."""

    def step(_: Any, at: Scripted, __: Any) -> Tensor:
        w = at.point
        return torch.stack([w[0] + 1, torch.where(w[1] < 4, w[1] + 1, end)])

    start = torch.ones(2, 1)
    settings = LoopSettings(max_nfe=9, tol=0, restarts=0)
    outcome = iterate(Heights(), step, Memory(start), start, settings, visits=9)
    assert outcome.status.tolist() == [Status.OUT_OF_BUDGET, Status.DIVERGED]
    assert outcome.visited[:, 0, 0].tolist() == list(range(2, 10))
    assert outcome.visited[:, 1, 0].tolist() == [2, 3, 4, 1, 1, 1, 1, 1]


# -- compaction -------------------------------------------------------------------------------------------------------

LASTS = [[9.0] * k + [0.0] + [9.0] * (11 - k) for k in (2, 9, 4, 2, 11, 3, 0, 6)]
FALLING = [[float(20 - k + 100 * i) for k in range(12)] for i in range(8)]


def test_samples_that_have_converged_leave_the_batch() -> None:
    together, compacted = Script.of(LASTS, FALLING), Script.of(LASTS, FALLING, separable=True)
    want, got = play(together), play(compacted)
    assert got.nfe.tolist() == want.nfe.tolist() == [3, 10, 5, 3, 12, 4, 1, 7]
    assert together.batches == [8] * 12
    assert compacted.batches == sorted(compacted.batches, reverse=True) and compacted.batches[-1] == 1
    waiting = [sum(nfe > k for nfe in got.nfe.tolist()) for k in range(12)]
    assert all(alive <= batch <= alive / 0.75 for alive, batch in zip(waiting, compacted.batches, strict=True))


def test_compaction_changes_nothing_but_the_cost() -> None:
    want, got = (play(Script.of(LASTS, FALLING, separable)) for separable in (False, True))
    for name in ("w", "objective", "residual", "status", "nfe"):
        assert torch.equal(getattr(got, name), getattr(want, name)), name
    assert got.trace is not None and want.trace is not None
    for k, sample in enumerate(got.trace.residual.T):
        end = int(got.nfe[k])
        assert sample[:end].tolist() == LASTS[k][:end], "its own, in its own place"
        assert len(set(sample[end - 1 :].tolist())) == 1, "a frozen sample repeats its last"
    assert got.trace.objective[:3, 1].tolist() == [-value for value in FALLING[1][:3]]


def test_visits_under_compaction_keep_every_sample_in_its_place() -> None:
    outcome = play(Script.of(LASTS, FALLING, separable=True), visits=12)
    assert (outcome.visited[:, :, 0] == torch.arange(8.0)).all()
    for i in range(8):
        end = int(outcome.nfe[i])
        expected = [min(k, end - 1) for k in range(1, 12)]
        assert outcome.visited[:, i, 1].tolist() == expected, "then its best point, where it converged"


def test_the_memory_leaves_with_its_row() -> None:
    script = Script.of(LASTS, FALLING, separable=True)
    memory = Steps(script.start)
    memory.rate = torch.arange(8.0)[:, None]
    play(script, memory)
    assert memory.rate.flatten().tolist() == [4.0], "the last to stay is the one with the longest script"
    assert memory.count.tolist() == [11.0]


# -- restarts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cliff(Confident):
    """Rows walk towards 0 from above; what steps below it is NaN."""

    def evaluate(self, w: Tensor) -> Scripted:
        height = torch.where(w[:, 0] < 0, torch.nan, w[:, 0])
        return Scripted.of(w, height, height)

    def pick(self, keep: Tensor) -> None:
        return None


def walk(restarts: int, max_nfe: int = 50, steps: Steps | None = None) -> tuple[Outcome, list[list[float]]]:
    """Steps of 4 times the rate, from 10 and from 11; the counts of the memory after each."""
    start = torch.tensor([[10.0], [11.0]])
    memory, counts = steps or Steps(start), []

    def step(_: Any, at: Scripted, memory: Any) -> Tensor:
        memory.count = memory.count + 1
        counts.append(memory.count.tolist())
        return at.point - 4 * memory.rate

    settings = LoopSettings(max_nfe=max_nfe, tol=0.5, restarts=restarts)
    return iterate(Cliff(), step, memory, start, settings), counts


def test_a_lost_sample_starts_again_from_its_best_with_half_the_rate_and_an_empty_memory() -> None:
    """10, 6, 2, lost; 2, 0, there. 11, 7, 3, lost; 3, 1, lost; 1, 0, there."""
    memory = Steps(torch.zeros(2, 1))
    outcome, counts = walk(restarts=2, steps=memory)
    assert outcome.status.tolist() == [Status.CONVERGED] * 2
    assert outcome.w.flatten().tolist() == [0, 0]
    assert outcome.nfe.tolist() == [6, 9]
    assert memory.rate.flatten().tolist() == [0.5, 0.25]
    assert [count[1] for count in counts] == [1, 2, 3, 4, 1, 2, 3, 1]


@pytest.mark.parametrize(("restarts", "statuses", "ends"), [(0, [2, 2], [2, 3]), (1, [0, 2], [0, 1])])
def test_restarts_are_counted_a_sample(restarts: int, statuses: list[int], ends: list[int]) -> None:
    outcome, _ = walk(restarts)
    assert outcome.status.tolist() == statuses and outcome.w.flatten().tolist() == ends


def test_a_restart_counts_in_the_budget() -> None:
    outcome, _ = walk(restarts=2, max_nfe=5)
    assert outcome.nfe.tolist() == [5, 5] and outcome.w.flatten().tolist() == [2, 3]
    assert not (outcome.status == Status.CONVERGED).any()


def test_a_start_that_is_not_finite_is_not_started_again() -> None:
    script = Script.of([[torch.nan] * 6], [[torch.nan] * 6])
    outcome = play(script, restarts=3)
    assert outcome.status.tolist() == [Status.NON_FINITE] and outcome.nfe.tolist() == [1]


# -- budgets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("price", "budget", "evaluations"), [(0, 10, 10), (1, 10, 5), (4, 10, 2), (9, 10, 1), (4, 11, 3)]
)
def test_what_steps_spend_counts_and_the_budget_is_never_exceeded(price: int, budget: int, evaluations: int) -> None:
    script = Script.of([[9.0] * 20], [[9.0] * 20])
    outcome = play(script, Steps(script.start, price), max_nfe=budget)
    assert len(script.batches) == evaluations
    assert outcome.nfe.tolist() == [evaluations + (evaluations - 1) * price] and outcome.nfe.max() <= budget


def test_samples_spend_each_their_own() -> None:
    def step(_: Any, at: Scripted, memory: Any) -> Tensor:
        memory.spent = torch.where(at.point[:, 0] == 0, 0, 4)
        return at.point + torch.tensor([0.0, 1.0])

    script = Script.of([[9.0] * 20] * 2, [[9.0] * 20] * 2)
    memory = Steps(script.start, price=4)
    outcome = iterate(script, step, memory, script.start, LoopSettings(max_nfe=20, tol=0.01))
    assert outcome.nfe.tolist() == [16, 16], "the first has 4 left, with which it could not pay the dearest step"
    assert len(script.batches) == 16


# -- tolerances -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "distance", "size", "expected"),
    [
        ({"tol": 1e-3}, 1e-2, 10.0, 1e-3),
        ({"tol": 1e-3, "atol": 1e-2}, 1e-2, 10.0, 1e-3),
        ({"tol": 1e-3, "atol": 1e-2}, 1e-2, 1e-5, 1e-3),
        ({"tol": 1e-3, "atol": 0.1}, 0.05, 10.0, 5e-4),
        ({"tol": 1e-3}, 1e-2, 1e-2, 1.0),
    ],
)
def test_a_sample_converges_by_either_tolerance(
    settings: dict[str, float], distance: float, size: float, expected: float
) -> None:
    residual = LoopSettings(**settings).relative(torch.tensor([distance]).double(), torch.tensor([size]).double())  # type: ignore[arg-type]
    assert residual.item() == pytest.approx(expected)


def test_nothing_over_nothing_is_nothing() -> None:
    zero = torch.zeros(1)
    assert LoopSettings().relative(zero, zero).item() == 0
    assert LoopSettings(tol=0).relative(zero, zero).item() == 0


def test_norms() -> None:
    rows = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    assert Norm.L2.of(rows).tolist() == [5, 0] and Norm.LINF.of(rows).tolist() == [4, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_nfe": 0}, "max_nfe must be at least 1, got 0"),
        ({"tol": -1.0}, r"tol must be 0 or larger, got -1\.0"),
        ({"atol": -1.0}, r"atol must be 0 or larger, got -1\.0"),
        ({"atol": 1e-3, "tol": 0.0}, r"atol needs a tol larger than 0, .*: got 0\.0"),
        ({"restarts": -1}, "restarts must be 0 or larger, got -1"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        LoopSettings(**settings)
    with pytest.raises(ProblemError, match=message):
        replace(LoopSettings(), **settings)


# -- memories ---------------------------------------------------------------------------------------------------------


def test_a_restart_empties_a_memory_and_those_within_it_of_the_lost_rows_alone() -> None:
    outer, inner = Steps(torch.zeros(3, 2)), Steps(torch.zeros(3, 2))
    outer.inner = inner  # type: ignore[attr-defined]
    outer.count, inner.count = torch.tensor([1.0, 2, 3]), torch.tensor([4.0, 5, 6])
    outer.restart(torch.tensor([False, True, False]))
    assert outer.count.tolist() == [1, 0, 3] and inner.count.tolist() == [4, 0, 6]
    assert outer.rate.flatten().tolist() == inner.rate.flatten().tolist() == [1, 0.5, 1]
    outer.pick(torch.tensor([False, True, True]))
    assert outer.count.tolist() == [0, 3] and inner.count.tolist() == [0, 6]
    assert outer.rate.flatten().tolist() == inner.rate.flatten().tolist() == [0.5, 1]


def test_the_rate_shortens_the_damped_step() -> None:
    w, target = torch.zeros(2, 3), torch.ones(2, 3)
    memory = Memory(w)
    memory.restart(torch.tensor([False, True]))
    assert torch.allclose(memory.damped(w, target, 0.8), torch.tensor([[0.8], [0.4]]))
