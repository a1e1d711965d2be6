"""Clauses on the samples of a batch: each is solved as if it were alone, whatever happens to the others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deqopt.iteration import Status
from deqopt.state import State, tensors_of
from deqopt.testing.problems import ALL, BALL, DATA, FAMILIES, GROUPED, LINEAR, TANH, TUPLE, Case
from deqopt.testing.report import clauses_of
from deqopt.testing.trial import STEPS, TOL, Trial, Walk, apart, differences, is_finite, solve

VICTIM = 2
OTHERS = [(row, row) for row in ALL if row != VICTIM]
EVERYONE = [(row, row) for row in ALL]


def samples_are_solved_as_if_alone(trial: Trial) -> Iterator[str]:
    """A sample has the same solution in any batch: alone, with others, and in another order."""
    for family in FAMILIES:
        together = solve(trial.short, trial.case(family))
        for order in ([3], [4, 1]):
            found = solve(trial.short, trial.case(family, order))
            where = f"{family.name}, solved {'alone' if len(order) == 1 else 'in another batch'}"
            yield from differences(found, together, where, list(enumerate(order)), tol=1e-5)


def a_nan_sample_harms_no_other(trial: Trial) -> Iterator[str]:
    """A sample whose start or data is NaN ends as NON_FINITE, and the others as they do without it."""
    for family in (LINEAR, TUPLE, DATA):
        case = trial.case(family)
        sane = solve(trial.short, case)
        if case.problem.data is None:
            x0 = case.x0.clone()
            x0[VICTIM] = torch.nan
            hurt = replace(case, x0=x0)
        else:
            data = {name: value.clone() for name, value in case.problem.data.items()}
            data["target"][VICTIM] = torch.nan
            hurt = replace(case, problem=replace(case.problem, data=data))
        found = solve(trial.short, hurt)
        yield from differences(found, sane, f"{case.name}, sample {VICTIM} NaN", OTHERS)
        if found.status[VICTIM] != Status.NON_FINITE:
            yield f"{case.name}: a sample that starts as NaN ends as {Status.of(found.status[VICTIM]).name}"


def a_sample_that_becomes_nan_harms_no_other(trial: Trial) -> Iterator[str]:
    """A sample whose cell gives NaN away from the start ends at a finite point, the others as they do without it."""

    def spoil(image: Tensor, z: Tensor, x: Tensor, victim: Tensor) -> Tensor:
        return image * torch.where(victim & (x.norm(dim=1, keepdim=True) > 0.2), torch.nan, 1.0)

    for family in (LINEAR, BALL):
        yield from _harm(trial, trial.case(family), spoil, "becomes NaN")


def a_diverging_sample_harms_no_other(trial: Trial) -> Iterator[str]:
    """A sample whose cell blows up ends at a finite point, and the others as they do without it."""

    def spoil(image: Tensor, z: Tensor, x: Tensor, victim: Tensor) -> Tensor:
        return image + victim * (10 * z + z**3)

    for family in (LINEAR, BALL):
        yield from _harm(trial, trial.case(family), spoil, "diverges")


def a_sample_without_gradient_harms_no_other(trial: Trial) -> Iterator[str]:
    """A sample whose input has no effect (a gradient of exactly zero, a singular system) stays where it is without
    becoming NaN, and the others end as they do without it."""
    for family in (LINEAR, BALL, TANH):
        case = trial.case(family)
        sane = solve(trial.short, case)
        cell = case.problem.cell

        def deaf(z: State, x: Tensor, cell: Callable[..., State] = cell) -> State:
            hears = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
            hears[VICTIM] = 0
            return cell(z, hears * x)

        found = solve(trial.short, case.with_cell(deaf))
        yield from differences(found, sane, f"{case.name}, sample {VICTIM} has no gradient", OTHERS)
        if found.status[VICTIM] in (Status.DIVERGED, Status.NON_FINITE):
            yield f"{case.name}: the sample without a gradient becomes NaN; a norm that divides needs clamp_min"
        if not found.x[VICTIM].norm() <= 1e-6:
            yield f"{case.name}: the sample without a gradient moves to |x| = {found.x[VICTIM].norm():.1e}, expected 0"


def a_solved_sample_stops_and_harms_no_other(trial: Trial) -> Iterator[str]:
    """A sample that starts at its solution costs one evaluation and stays there, and the others end as without it."""
    for family in (LINEAR, BALL, TUPLE, GROUPED):
        case = trial.case(family)
        cold, warm = solve(trial.short, case), _solved(case, [VICTIM])
        found = trial.short.solve(case.problem, *warm[:2], mu0=warm[2])
        yield from differences(found, cold, f"{case.name}, sample {VICTIM} is solved at the start", OTHERS)
        if found.nfe[VICTIM] != 1 or found.status[VICTIM] != Status.CONVERGED:
            status = Status.of(found.status[VICTIM]).name
            yield f"{case.name}: a solved start costs {found.nfe[VICTIM]} evaluations and ends as {status}, expected 1"
        if not (found.x[VICTIM] - case.x[VICTIM]).norm() <= 1e-6:
            yield f"{case.name}: a solved start is moved away from"


def compaction_changes_nothing(trial: Trial) -> Iterator[str]:
    """Where the problem has data, samples that are finished leave the batch: the cell gets fewer, and the results are
    the same. What a Memory keeps a sample must be tensors with the batch first, or memories."""
    with torch.no_grad():
        off = _steps_of_fewer(trial)
    if not off <= TOL:
        yield f"after memory.pick(keep) a step differs by {off:.1e} from the one that all samples take together"
    sizes: list[int] = []
    results = []
    for as_data in (True, False):
        case = trial.case(replace(DATA, as_data=as_data))
        z0, x0, mu0 = _solved(case, ALL[:1])
        # two samples are lost on the way, one sooner than the other
        limit = torch.tensor([torch.inf, 0.1, 0.4, torch.inf, torch.inf], dtype=x0.dtype, device=x0.device)[:, None]
        own = (limit, case.x0)

        def cell(z: State, x: Tensor, data: Any = None, case: Case = case, own: Any = own) -> State:
            limit, centre = own if data is None else data["own"]
            sizes.append(len(x) if data is not None else len(ALL))
            image = case.problem.cell(z, x) if data is None else case.problem.cell(z, x, data)
            assert isinstance(image, Tensor)
            return image * torch.where((x - centre).norm(dim=1, keepdim=True) > limit, torch.nan, 1.0)

        data = {**case.problem.data, "own": own} if as_data else None
        problem = replace(case.problem, cell=cell, data=data)
        results.append(replace(trial.short, restarts=0).solve(problem, z0, x0, mu0=mu0))
    yield from differences(results[0], results[1], "with data, and without", EVERYONE)
    finished = int((results[0].nfe < results[0].nfe.max() - 4).sum())
    if finished > len(ALL) // 2 and min(sizes) == len(ALL):
        yield f"{finished} of {len(ALL)} samples are finished early, and the cell still gets all of them"


def _steps_of_fewer(trial: Trial) -> float:
    """How far from the step that they take among all is the one that some samples of a memory take."""
    walk = Walk.of(trial, trial.case(DATA))
    for _ in range(STEPS):
        walk.go()
    keep = torch.arange(len(walk.point), device=walk.point.device) % 2 == 0
    fewer = walk.system.pick(keep)
    assert fewer is not None
    few = Walk(trial.short, fewer, walk.point[keep], copy.deepcopy(walk.memory))
    few.memory.pick(keep)
    return float(apart(few.go(), walk.go()[keep]).max())


def _harm(
    trial: Trial, case: Case, spoil: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], what: str
) -> Iterator[str]:
    """One sample's cell is spoilt."""
    sane = solve(trial.short, case)

    def cell(z: State, x: Tensor) -> State:
        image = case.problem.cell(z, x)
        assert isinstance(z, Tensor) and isinstance(image, Tensor)
        victim = (torch.arange(len(x), device=x.device) == VICTIM)[:, None]
        return spoil(image, z, x, victim)

    found = solve(trial.short, case.with_cell(cell))
    yield from differences(found, sane, f"{case.name}, sample {VICTIM} {what}", OTHERS)
    if not is_finite(found.z, found.x, found.mu, found.objective):
        yield f"{case.name}: the sample that {what} is returned with values that are not finite"


def _solved(case: Case, which: Sequence[int]) -> tuple[State, Tensor, State]:
    """z0, x0 and mu0 that are the solution in the samples ``which``, and the cold start in the others."""

    def mixed(start: Tensor, solution: Tensor) -> Tensor:
        result = start.clone()
        result[list(which)] = solution[list(which)]
        return result

    z = tuple(mixed(a, b) for a, b in zip(tensors_of(case.z0), tensors_of(case.z), strict=True))
    mu = tuple(mixed(torch.zeros_like(a), a) for a in tensors_of(case.mu))
    one = isinstance(case.z0, Tensor)
    return z[0] if one else z, mixed(case.x0, case.x), mu[0] if one else mu


CLAUSES = clauses_of(__name__)
