"""Broyden's good method for the whole stationary system, with feasible inputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deqopt.fixed_point.broyden import BroydenUpdates
from deqopt.solvers.mixing import JointMixing
from deqopt.solvers.system import JointSystem


@dataclass(frozen=True)
class JointBroyden(JointMixing):
    """Broyden's good method with limited memory for z, mu and x at once.

    It needs shorter steps than :class:`JointAnderson`. Of random problems of about unit size, it solves 93 to 100 %
    with normalised steps of 0.1, but only 18 to 52 % with steps of 1.

    Example, with the problem and the start of :class:`deqopt.JointProblem`'s:
        >>> JointBroyden(tol=1e-5).solve(problem, z0, x0).x[0]
        tensor([0.4000, 0.4000, 0.4000])
    """

    step_size: float = 0.1

    def begin(self, system: JointSystem, states: Tensor, x: Tensor) -> BroydenUpdates:
        return BroydenUpdates(system.join(states, x), self.history_size, system.widths)
