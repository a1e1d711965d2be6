"""Points that penalties are taken at, and a cell whose derivatives are known."""

import torch
from torch import Tensor

from deqopt import Equilibrium, JointProblem, Status
from deqopt.state import State, state_of, tensors_of


def solved(problem: JointProblem, z: State, x: Tensor, status: Status = Status.CONVERGED) -> Equilibrium:
    """A result at given points, as a solver would return it."""
    count = len(x)
    return Equilibrium(
        z=z,
        x=x,
        mu=z,
        objective=torch.zeros(count),
        residual=torch.zeros(count),
        status=torch.full((count,), int(status)),
        nfe=torch.ones(count, dtype=torch.long),
    )


def random_like(z: State) -> State:
    """A multiplier with nothing to do with the problem."""
    return state_of((torch.randn_like(part) for part in tensors_of(z)), z)


def quadratic_cell(gain: Tensor) -> JointProblem:
    """The Jacobian is ``gain z``: it depends on the point."""
    return JointProblem(lambda z, x: 0.5 * gain * z * z, lambda z, x: z.square().sum(1))
