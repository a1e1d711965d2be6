"""The feasible point: solves z and mu exactly for a given input, so that results can be compared and trusted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deqopt.equilibrium import Equilibrium
from deqopt.fixed_point import Anderson, FixedPoint, FixedPointSolver
from deqopt.problem import JointProblem, pull_back
from deqopt.scale import Scale
from deqopt.solvers.system import JointSystem
from deqopt.state import State, leaf, state_of, tensors_of


def solve_exactly(
    problem: JointProblem, equilibrium: Equilibrium, solver: FixedPointSolver | None = None
) -> Equilibrium:
    """The point with the same x, with ``z = f(z, x)`` and ``mu = d_z J + (d_z f)^T mu`` solved from the given values.

    Its ``objective`` is J on the constraint, and its ``residual`` that of the whole stationary system. ``nfe`` and
    ``status`` stay those of the original solve.

    Args:
        solver: solver for both systems; by default Anderson mixing with 100 evaluations and a tolerance of 1e-5.
    """
    solver = solver or Anderson(max_nfe=100, tol=1e-5)
    x = equilibrium.x.detach()
    z = solve_state(problem, x, equilibrium.z, solver).z
    mu = solve_multiplier(problem, z, x, equilibrium.mu, solver).z
    scale = equilibrium.scale or Scale.at(problem, z, x, solver.norm)
    system = JointSystem.of(problem, z, x, solver, scale=scale)
    measured = system.measure(system.pack(z, mu, x), problem.evaluate(z, x, mu))
    return replace(
        equilibrium,
        z=z,
        mu=mu,
        objective=measured.objective,
        residual=measured.residual,
        lag=measured.lag,
        state_lag=measured.figures[:, 1],
        error=measured.slope * measured.distance,
        trace=None,
        visited=(),
    )


def solve_state(problem: JointProblem, x: Tensor, z: State, solver: FixedPointSolver) -> FixedPoint:
    """Solve ``z = f(z, x)`` from z; if the problem has ``data``, converged samples leave the batch."""
    if problem.data is None:
        return solver.solve(lambda z: problem.f(z, x), z)

    def f(z: State, given: tuple[Tensor, Any]) -> State:
        x, data = given
        return replace(problem, data=data).f(z, x)

    return solver.solve(f, z, (x, problem.data))


def solve_multiplier(problem: JointProblem, z: State, x: Tensor, mu: State, solver: FixedPointSolver) -> FixedPoint:
    """Solve ``mu = d_z J + (d_z f)^T mu`` at ``(z, x)`` from mu, by vector-Jacobian products of one graph of f."""
    with torch.enable_grad():
        at = leaf(z)
        f_parts = tensors_of(problem.f(at, x))
        direct = pull_back([problem.J(at, x).sum()], tensors_of(at))

    def multiplier_map(mu: State) -> State:
        through = pull_back(f_parts, tensors_of(at), tensors_of(mu), retain_graph=True)
        return state_of((one + other for one, other in zip(direct, through, strict=True)), mu)

    return solver.solve(multiplier_map, mu)
