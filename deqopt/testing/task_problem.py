"""Clauses on what a task solves: its batches, its start, its problem, and the samples of it kept apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from deqopt.batch import finite_samples, pick, size_of
from deqopt.equilibrium import Equilibrium
from deqopt.problem import Evaluation, JointProblem
from deqopt.state import state_of, tensors_of
from deqopt.testing.bench import Bench
from deqopt.testing.report import Inapplicable
from deqopt.testing.trial import apart, differences, is_finite, rows

NEAR = 1e-3
# Further than any x0 or z0 is likely to be from where a cell is smooth.
SPREAD = 0.5


def the_datamodule_gives_batches(bench: Bench) -> Iterator[str]:
    """datamodule() is a LightningDataModule whose train, val, test and, where the task writes predictions, predict
    loaders each give batches of tensors, with the samples first."""
    if bench.given is not None:
        raise Inapplicable("a batch was given")
    for stage, batch in bench.loaded.items():
        lost = int((~finite_samples(batch)).sum())
        if lost == size_of(batch):
            yield f"all {lost} samples of the first {stage} batch are NaN or infinite"


def start_and_problem_fit(bench: Bench) -> Iterator[str]:
    """start() gives (z0, x0), a sample of each for every sample of the batch, finite and feasible; problem() gives a
    JointProblem whose cell keeps the shape of z and whose objective is one value a sample, finite at the start."""
    batch = bench.batch()
    with bench.mode(training=False):
        problem, start = bench.task.problem(batch), bench.task.start(batch)
        if not isinstance(problem, JointProblem):
            yield f"problem() returned a {type(problem).__name__}, expected a JointProblem"
            return
        if not isinstance(start, tuple) or len(start) != 2:
            yield f"start() returned a {type(start).__name__}, expected (z0, x0)"
            return
        z0, x0 = start
        problem.check(z0, x0)
        if len(x0) != size_of(batch):
            yield f"start() returned {len(x0)} samples for a batch of {size_of(batch)}"
            return
        if not is_finite(z0, x0):
            yield "z0 or x0 is not finite"
        if not (problem.feasible.distance(x0) <= 1e-5 * (1 + x0.flatten(1).norm(dim=1))).all():
            yield "x0 is not in the feasible set: project it in start()"
        at = problem.evaluate(z0, x0, z0)
        for name in ("f", "objective", "g_z", "g_x"):
            if not is_finite(getattr(at, name)):
                yield f"{name} is not finite at the start"


def samples_are_not_coupled(bench: Bench) -> Iterator[str]:
    """cell and objective treat every sample alone, in training mode too (GroupNorm, not BatchNorm): another z and x of
    one sample change nothing in the others."""
    batch = bench.batch()
    for training in (True, False):
        with bench.mode(training):
            problem, (z0, x0) = bench.task.problem(batch), bench.task.start(batch)
            z, x, mu = _near(z0), _near(x0), _near(z0)
            others = list(range(1, len(x0)))
            one = [torch.arange(len(x0), device=x0.device) == 0]
            torch.manual_seed(1)
            before = problem.evaluate(z, x, mu)
            torch.manual_seed(1)
            after = problem.evaluate(_mixed(_near(z0), z, *one), _mixed(_near(x0), x, *one), mu)
        yield from _unlike(after, before, others, f"in {'training' if training else 'evaluation'} mode")


def a_sample_has_one_solution(bench: Bench) -> Iterator[str]:
    """At evaluation a sample has the same start, problem and solution in any batch, in any order."""
    batch = bench.batch()
    size = size_of(batch)
    keep = torch.arange(size) % 2 == 0
    with bench.mode(training=False):
        together = bench.solve(batch)[1]
        backwards = bench.solve(_ordered(batch, list(range(size))[::-1]))[1]
        fewer = bench.solve(pick(batch, keep))[1]
    every = [(row, size - 1 - row) for row in range(size)]
    yield from _differ(backwards, together, "in the reversed batch", every)
    yield from _differ(fewer, together, "without every second sample", list(enumerate(range(0, size, 2))))


def data_can_be_compacted(bench: Bench) -> Iterator[str]:
    """problem(batch).pick(keep) is problem(pick(batch)), so that finished samples can leave the batch: its data is
    what belongs to a sample, with the samples first."""
    batch = bench.batch()
    keep = torch.arange(size_of(batch), device=bench.device) % 2 == 0
    with bench.mode(training=False):
        whole, (z0, x0) = bench.task.problem(batch), bench.task.start(batch)
        picked = whole.pick(keep, x0.dim())
        if picked is None:
            raise Inapplicable("the problem has no data, or a set without pick(): finished samples stay in the batch")
        z, x, mu = (_near(part) for part in (z0, x0, z0))
        part, point = bench.task.problem(pick(batch, keep)), [pick(one, keep) for one in (z, x, mu)]
        yield from _unlike(picked.evaluate(*point), part.evaluate(*point), range(int(keep.sum())), "picked")
        far = point[1] + 10 * torch.randn_like(point[1])
        if not (apart(rows(picked.feasible.project(far)), rows(part.feasible.project(far))) <= NEAR).all():
            yield "the feasible set of the picked problem is another than that of the picked batch"


def evaluation_is_deterministic(bench: Bench) -> Iterator[str]:
    """In evaluation mode a batch has one solution, whatever the seed: noise comes from a generator of its own, or with
    the data."""
    batch = bench.batch()
    found: list[Equilibrium] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with bench.mode(training=False):
            found.append(bench.solve(batch)[1])
    pairs = [(row, row) for row in range(size_of(batch))]
    yield from _differ(found[0], found[1], "with another seed", pairs)


def _differ(found: Equilibrium, expected: Equilibrium, where: str, pairs: Sequence[tuple[int, int]]) -> Iterator[str]:
    if not expected.usable.all():
        yield f"{int((~expected.usable).sum())} samples end as NON_FINITE"
        return
    yield from differences(found, expected, where, pairs, tol=NEAR)


def _unlike(found: Evaluation, expected: Evaluation, samples: Sequence[int], where: str) -> Iterator[str]:
    for name, what in (("f", "cell"), ("objective", "objective"), ("g_z", "gradient in z"), ("g_x", "gradient in x")):
        first, second = getattr(found, name), getattr(expected, name)
        if name != "objective":
            first, second = rows(first), rows(second)
        off = apart(first[list(samples)], second[list(samples)])
        worst = int(off.argmax())
        if not off[worst] <= NEAR:
            yield f"{where}: the {what} of sample {samples[worst]} differs by {off[worst]:.1e}, expected no difference"


def _near(state: Any) -> Any:
    """A random point around a start."""
    return state_of((part.detach() + SPREAD * torch.randn_like(part) for part in tensors_of(state)), state)


def _mixed(first: Any, second: Any, where: Tensor) -> Any:
    """``first`` in the samples ``where``, (B,), else ``second``."""
    pairs = zip(tensors_of(first), tensors_of(second), strict=True)
    return state_of((torch.where(where.reshape(-1, *[1] * (a.dim() - 1)), a, b) for a, b in pairs), second)


def _ordered(batch: Any, order: Sequence[int]) -> Any:
    """A batch with its samples in another order: picked by indices, as :func:`deqopt.batch.pick` picks by a mask."""
    index = torch.tensor(order)
    assert len(index) == size_of(batch)
    return pick(batch, index)


FIRST = (the_datamodule_gives_batches,)
SECOND = (start_and_problem_fit,)
CLAUSES = (samples_are_not_coupled, a_sample_has_one_solution, data_can_be_compacted, evaluation_is_deterministic)
