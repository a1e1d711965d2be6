"""The feasible point: z and mu solved exactly for a given input, so that results can be compared and trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from deqopt.equilibrium import Equilibrium
from deqopt.fixed_point import Anderson, FixedPointSolver
from deqopt.problem import JointProblem
from deqopt.solvers.base import JointLayout, measure
from deqopt.state import State, tensors_of


def solve_exactly(
    problem: JointProblem, equilibrium: Equilibrium, solver: FixedPointSolver | None = None
) -> Equilibrium:
    """The point with the same x and ``z = f(z, x)``, ``mu = d_z J + (d_z f)^T mu`` solved from where they are.

    Its ``objective`` is J on the constraint, its ``residual`` what is left of the whole stationary system. Its ``nfe``
    and ``status`` stay those of the solve.

    Args:
        solver: for both systems; by default Anderson mixing with 100 evaluations and a tolerance of 1e-5.
    """
    solver = solver or Anderson(max_nfe=100, tol=1e-5)
    x = equilibrium.x.detach()
    z = solver.solve(lambda z: problem.f(z, x), equilibrium.z).z
    with torch.enable_grad():
        z_parts = tuple(part.detach().requires_grad_() for part in tensors_of(z))
        z_leaf: State = z_parts[0] if isinstance(z, Tensor) else z_parts
        f_parts = tensors_of(problem.f(z_leaf, x))
        objective = problem.J(z_leaf, x)
        d_z_objective = _pull_back([objective], z_parts, [torch.ones_like(objective)])

    def multiplier_map(mu: State) -> State:
        pulled = _pull_back(f_parts, z_parts, tensors_of(mu))
        parts = tuple(direct + through for direct, through in zip(d_z_objective, pulled, strict=True))
        return parts[0] if isinstance(z, Tensor) else parts

    mu = solver.solve(multiplier_map, equilibrium.mu).z
    layout = JointLayout.of(z, x, problem.feasible)
    measured = measure(layout, layout.pack(z, mu, x), problem.evaluate(z, x, mu), problem.input_scale(z, x))
    return replace(
        equilibrium,
        z=z,
        mu=mu,
        objective=measured.objective,
        residual=measured.residual,
        trace=None,
        visited=(),
    )


def _pull_back(
    outputs: Sequence[Tensor], inputs: tuple[Tensor, ...], cotangents: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The vector-Jacobian product, zero where the outputs do not reach the inputs; the graph stays."""
    reached = [
        (output, v.to(output.dtype)) for output, v in zip(outputs, cotangents, strict=True) if output.requires_grad
    ]
    if not reached:
        return tuple(torch.zeros_like(part) for part in inputs)
    return torch.autograd.grad(
        [output for output, _ in reached],
        inputs,
        [v for _, v in reached],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
