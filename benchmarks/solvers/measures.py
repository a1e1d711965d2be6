"""What deqopt must reach, measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.solvers.contest import Cost, Scene, Side, Standing
from benchmarks.solvers.models import AttackedClassifier, Digits, frozen, rows_of, to_device
from benchmarks.solvers.stopwatch import peak_bytes
from deqopt import JointProblem
from deqopt.clock import now
from deqopt.solvers import JointAnderson, JointSolver, StepRule, Tracking
from deqopt.state import State, leaf, state_of, tensors_of


@dataclass(frozen=True)
class MeasuredRatio:
    """A measure, its target, and what was reached.

    Attributes:
        value: the ratio; NaN where it could not be formed.
        target: at most this, or at least where ``at_least``.
        detail: what went into the ratio.
    """

    measure: str
    target: float
    at_least: bool
    value: float
    detail: str

    @property
    def met(self) -> bool:
        return self.value >= self.target if self.at_least else self.value <= self.target


def times_cheaper(
    measure: str, target: float, standings: Sequence[Standing], baseline: str, cost: Cost
) -> MeasuredRatio:
    """What ``baseline`` took over what deqopt takes to get as far.

    The strategy of deqopt is the one that costs least on the validation images; the figure is of the test images.
    """
    against = next(standing for standing in standings if standing.entrant.name == baseline)
    goal, tried = against.test.at(against.chosen), against.validation.at(against.chosen)
    ours = [standing for standing in standings if standing.entrant.side is Side.OURS]
    best = min(ours, key=lambda standing: (standing.validation.least(cost, tried.objective), standing.validation.best))
    spent = best.test.least(cost, goal.objective)
    theirs: float = getattr(goal, cost)
    reached = f"{spent:.3g}" if math.isfinite(spent) else f"never, at best {best.test.best:.5g}"
    detail = (
        f"{baseline}, {goal.label} steps: {theirs:.3g} {cost} to {goal.objective:.5g}; {best.entrant.name}: {reached}"
    )
    return MeasuredRatio(measure, target, True, theirs / spent, detail)


def iteration_cost(device: torch.device, repeats: int, iterations: int) -> MeasuredRatio:
    """One JointAnderson iteration with memory 20 over one bare evaluation with its head, at 28x28, batch 16."""
    torch.manual_seed(0)
    model = frozen(AttackedClassifier(size=28)).to(device)
    batch = to_device(rows_of(Digits.of(model, seed=0).test, slice(16)), device)
    problem, (z0, x0) = model.problem(batch), model.start(batch)
    z, mu = (tuple(torch.randn_like(part) for part in tensors_of(z0)) for _ in range(2))
    solver = JointAnderson(max_nfe=iterations, history_size=20, step_size=0.1, step_rule=StepRule.PLAIN, tol=0.0)

    def evaluate_only() -> None:
        for _ in range(iterations):
            bare_evaluation(problem, z, x0, mu)

    bare, joint = in_turns(device, repeats, evaluate_only, lambda: solver.solve(problem, z0, x0))
    detail = f"{1e3 * joint / iterations:.2f} ms over {1e3 * bare / iterations:.2f} ms"
    return MeasuredRatio(
        "1 cost of a JointAnderson iteration over a bare evaluation", 1.25, False, joint / bare, detail
    )


def bare_evaluation(problem: JointProblem, z: State, x: Tensor, mu: State) -> tuple[Tensor, ...]:
    """One forward of f and J and one vector-Jacobian product, with nothing around them."""
    z, x = leaf(z), x.detach().requires_grad_()
    f = tensors_of(problem.cell(z, x, problem.data))
    objective = problem.objective(z, x, problem.data)
    return torch.autograd.grad([objective.sum(), *f], [*tensors_of(z), x], [None, *tensors_of(mu)])


def in_turns(device: torch.device, repeats: int, *works: Callable[[], object]) -> list[float]:
    """Median seconds of each, after a warm-up, taking turns."""
    seconds: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 1):
        for index, work in enumerate(works):
            started = now(device)
            work()
            if turn:
                seconds[index].append(now(device) - started)
    return [statistics.median(column) for column in seconds]


def half_converged(model: AttackedClassifier, pool: Any, repeats: int, budget: int, tol: float = 1e-3) -> MeasuredRatio:
    """A batch of which half is converged at its start, over the same batch of which none is.

    Args:
        pool: twice as many images as the batch has; those that converge are sought among them.
    """
    measure = "5 a batch half converged at the start over the full batch"
    device, size = pool.image.device, len(pool.image) // 2
    solved = JointAnderson(max_nfe=10 * budget, step_size=0.02, step_rule=StepRule.PLAIN, tol=tol / 2).solve(
        model.problem(pool), *model.start(pool)
    )
    done = solved.converged.nonzero().flatten()[: size // 2]
    if len(done) < size // 2:
        return MeasuredRatio(
            measure, 0.65, False, math.nan, f"only {len(done)} of {2 * size} samples converge to {tol:g}"
        )
    others = torch.ones_like(solved.converged).index_fill(0, done, False).nonzero().flatten()[: size - len(done)]
    rows = torch.cat([done, others])
    batch = rows_of(pool, rows)
    problem, (z0, x0) = model.problem(batch), model.start(batch)
    zeros = state_of((torch.zeros_like(part) for part in tensors_of(z0)), z0)

    def half(found: Tensor, start: Tensor) -> Tensor:
        return torch.cat([found[done], start[len(done) :]])

    def halves(found: State, start: State) -> State:
        return state_of(map(half, tensors_of(found), tensors_of(start)), start)

    z, mu, x = halves(solved.z, z0), halves(solved.mu, zeros), half(solved.x, x0)
    solver = JointAnderson(max_nfe=budget, step_size=0.02, step_rule=StepRule.PLAIN, tol=tol)
    full, rest = in_turns(
        device,
        repeats,
        lambda: solver.solve(problem, z0, x0, mu0=zeros),
        lambda: solver.solve(problem, z, x, mu0=mu),
    )
    detail = f"{rest:.3f} s over {full:.3f} s: classifier, {size} samples, JointAnderson, at most {budget} evaluations"
    return MeasuredRatio(measure, 0.65, False, rest / full, detail)


def memory_growth(scene: Scene, short: int = 20, long: int = 400) -> list[MeasuredRatio]:
    """Peak memory of a solve with 400 evaluations over that with 20, above what was there before."""
    problem, z0, x0 = scene.test

    def figure(name: str, make: Callable[[int], JointSolver]) -> MeasuredRatio:
        low, high = (peak_bytes(scene.device, partial(make(n).solve, problem, z0, x0)) for n in (short, long))
        detail = f"{name}: {high / 2**20:.2f} MiB over {low / 2**20:.2f} MiB"
        return MeasuredRatio(
            f"6 peak memory at {long} evaluations over that at {short}", 1.05, False, high / low, detail
        )

    return [
        figure("JointAnderson", lambda n: JointAnderson(max_nfe=n, step_size=0.02, step_rule=StepRule.PLAIN, tol=0.0)),
        figure("Tracking", lambda n: Tracking(max_nfe=n, tol=0.0)),
    ]
