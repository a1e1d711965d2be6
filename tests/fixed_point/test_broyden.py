"""Broyden's good method: that of the textbook, for every row alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from catalogue import STATE, linear, zeros
from deqopt import JointProblem
from deqopt.fixed_point import Broyden, BroydenUpdates, Damped
from deqopt.solvers import JointBroyden, StepRule

SIZE = 8


def affine(norm: float = 0.9, seed: int = 0, size: int = SIZE) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(size, size, generator=generator, dtype=torch.float64)
    b = torch.randn(size, generator=generator, dtype=torch.float64)
    return lambda w: w @ (norm * a / torch.linalg.matrix_norm(a, 2)) + b


def textbook(pairs: list[tuple[Tensor, Tensor]], metric: Tensor, damping: Tensor) -> Tensor:
    """The inverse Jacobian of Broyden (1965), one Sherman-Morrison update after the other, as a matrix."""
    inverse = -torch.diag(damping)
    for s, y in pairs:
        row = (metric * s) @ inverse
        inverse = inverse + torch.outer(s - inverse @ y, row) / (row @ y)
    return inverse


@pytest.mark.parametrize("damping", [1.0, 0.6])
@pytest.mark.parametrize("memory", [2, 4, 30])
@pytest.mark.parametrize("widths", [[SIZE], [3, 5], [2, 2, 4]])
def test_proposals_are_those_of_the_textbook(widths: list[int], memory: int, damping: float) -> None:
    """With the last ``memory - 1`` pairs, all in the metric of the newest point; also where others chose the points."""
    f = affine(1.3)
    share = torch.full((SIZE,), damping, dtype=torch.float64)
    share[: widths[0]] *= 0.5
    w = torch.randn(3, SIZE, dtype=torch.float64)
    updates, points, residuals = BroydenUpdates(w, memory, widths), [], []
    for k in range(10):
        target = f(w)
        points.append(w)
        residuals.append(target - w)
        proposal = updates.mix(w, target, share)
        for i in range(3):
            pairs = [
                (points[j + 1][i] - points[j][i], residuals[j + 1][i] - residuals[j][i])
                for j in range(max(k - memory + 1, 0), k)
            ]
            blocks = target[i].split(widths)
            metric = torch.cat([torch.full_like(block, float(1 / block.square().sum())) for block in blocks])
            expected = w[i] - textbook(pairs, metric, share) @ residuals[-1][i]
            assert torch.allclose(proposal[i], expected, rtol=1e-6, atol=1e-8)
        w = proposal + 0.1 * torch.randn_like(w)


@pytest.mark.parametrize("norm", [0.9, 3.0])
def test_affine_maps_are_solved_in_twice_as_many_steps_as_dimensions(norm: float) -> None:
    """Gay 1979: at most 2 n steps, whatever the map."""
    solution = Broyden(max_nfe=60, tol=1e-9, history_size=40, restarts=0).solve(
        affine(norm), torch.zeros(2, SIZE, dtype=torch.float64)
    )
    assert (solution.status == 0).all() and (solution.nfe <= 2 * SIZE + 2).all()


@pytest.mark.parametrize("memory", [2, 6, 20])
def test_memory_is_on(memory: int) -> None:
    f, z0 = affine(0.99, size=12), torch.zeros(2, 12, dtype=torch.float64)
    spent = Broyden(max_nfe=2000, tol=1e-8, history_size=memory).solve(f, z0).nfe
    less = Broyden(max_nfe=2000, tol=1e-8, history_size=memory // 2).solve(f, z0).nfe
    assert (spent < less).all()


def test_without_memory_it_is_the_damped_iteration() -> None:
    f, z0 = affine(), torch.randn(3, SIZE, dtype=torch.float64)
    mixed = Broyden(max_nfe=9, tol=0, history_size=1, damping=0.7).solve(f, z0)
    assert torch.equal(mixed.z, Damped(max_nfe=9, tol=0, damping=0.7).solve(f, z0).z)  # type: ignore[arg-type]


def run(updates: BroydenUpdates, f: Callable[[Tensor], Tensor], w: Tensor, steps: int) -> list[Tensor]:
    path = []
    for _ in range(steps):
        w = updates.mix(w, f(w), 0.9)
        path.append(w)
    return path


def test_rows_that_restart_go_on_as_if_they_had_just_begun() -> None:
    f, w = affine(), torch.randn(3, SIZE, dtype=torch.float64)
    updates = BroydenUpdates(w, 4, [SIZE])
    path = run(updates, f, w, 7)
    updates.restart(torch.tensor([False, True, False]))
    after = run(updates, f, path[-1], 6)
    undisturbed = run(BroydenUpdates(w, 4, [SIZE]), f, w, 13)[7:]
    fresh = BroydenUpdates(w, 4, [SIZE])
    fresh.rate[:] = 0.5
    begun = run(fresh, f, path[-1], 6)
    for got, same, new in zip(after, undisturbed, begun, strict=True):
        assert torch.allclose(got[[0, 2]], same[[0, 2]], atol=1e-12)
        assert torch.allclose(got[1], new[1], atol=1e-9)


def test_rows_that_stay_do_not_notice_that_others_leave() -> None:
    f, w, keep = affine(), torch.randn(4, SIZE, dtype=torch.float64), torch.tensor([True, False, False, True])
    updates = BroydenUpdates(w, 5, [3, 5])
    path = run(updates, f, w, 7)
    updates.pick(keep)
    for got, want in zip(
        run(updates, f, path[-1][keep], 4), run(BroydenUpdates(w, 5, [3, 5]), f, w, 11)[7:], strict=True
    ):
        assert torch.allclose(got, want[keep], atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 0.0, 1e300])
def test_a_singular_or_lost_row_touches_no_other(bad: float, dtype: torch.dtype) -> None:
    """Zero: the row does not move, or moves without any change of its residual, which has no inverse Jacobian."""
    w = torch.randn(3, SIZE, dtype=dtype)
    f = affine(0.9)

    def maps(rows: Tensor, value: float) -> Tensor:
        image = f(rows.double()).to(dtype)
        return torch.stack([image[0], rows[1] + value, image[2]])

    paths = [run(BroydenUpdates(w, 4, [3, 5]), partial(maps, value=value), w, 9) for value in (1.0, bad)]
    for sane, hurt in zip(*paths, strict=True):
        assert torch.equal(sane[[0, 2]], hurt[[0, 2]])
        assert sane[1].isfinite().all(), "a constant residual: the damped step"
        if bad == 0:
            assert torch.equal(hurt[1], w[1])
    assert torch.allclose(paths[0][0][1] - w[1], torch.full((SIZE,), 0.9, dtype=dtype), atol=1e-5)
    assert torch.allclose(paths[0][2][1] - paths[0][1][1], torch.full((SIZE,), 0.9, dtype=dtype), atol=1e-5)


def test_blocks_of_zeros_do_no_harm() -> None:
    w = torch.zeros(2, 6)
    updates = BroydenUpdates(w, 4, [2, 2, 2])
    for k in range(6):
        target = torch.cat([0.5 * w[:, :2] + 1, torch.zeros(2, 2), torch.full((2, 2), 1e-25)], dim=1)
        w = updates.mix(w, target, 1.0)
        assert w.isfinite().all(), k
    assert torch.allclose(w[:, :2], torch.full((2, 2), 2.0))


def test_its_steps_can_be_differentiated() -> None:
    """Against finite differences, also through the memory, when slots are overwritten."""
    a = torch.randn(4, 4, dtype=torch.float64) / 4
    w = torch.randn(2, 4, dtype=torch.float64)

    def end(a: Tensor) -> Tensor:
        updates, point = BroydenUpdates(w, 3, [1, 3]), w
        for _ in range(6):
            point = updates.mix(point, torch.tanh(point @ a + 1), 0.8)
        return point

    assert torch.autograd.gradcheck(end, a.requires_grad_(), atol=1e-5)


def test_what_the_joint_solver_needs_does_not_depend_on_the_units_of_the_blocks() -> None:
    """Each block is weighted by its own size, so x in other units (and its step) changes nothing."""
    case, factor = linear(), 100.0
    scaled = JointProblem(
        lambda z, x: case.problem.cell(z, x / factor), lambda z, x: case.problem.objective(z, x / factor)
    )
    plain = JointBroyden(max_nfe=200, tol=1e-8).solve(case.problem, case.z0, case.x0)
    found = JointBroyden(max_nfe=200, tol=1e-8, step_size=0.1 * factor).solve(scaled, case.z0, case.x0)
    assert plain.converged.all() and found.converged.all()
    assert torch.allclose(found.x / factor, plain.x, atol=1e-6)
    assert (found.nfe - plain.nfe).abs().max() <= 12


def test_the_joint_solver_takes_a_damping_a_block() -> None:
    case = linear()
    shares = (1.0, 0.8, 0.5)
    found = JointBroyden(max_nfe=200, tol=1e-9, damping=shares).solve(case.problem, case.z0, case.x0)
    same = JointBroyden(max_nfe=200, tol=1e-9, damping=0.8).solve(case.problem, case.z0, case.x0)
    assert case.truth is not None
    for one in (found, same):
        assert one.converged.all() and torch.allclose(one.x, case.truth.x, atol=1e-7)
    plain = JointBroyden(max_nfe=2, tol=0, damping=shares, history_size=1, step_rule=StepRule.PLAIN, step_size=0.1)
    first = plain.solve(case.problem, case.z0, case.x0, visits=1)
    z, x = first.visited[0]
    start = case.problem.evaluate(case.z0, case.x0, zeros(range(5), STATE))
    assert torch.allclose(z, start.f) and torch.allclose(x, -0.5 * 0.1 * start.g_x)  # type: ignore[arg-type]
