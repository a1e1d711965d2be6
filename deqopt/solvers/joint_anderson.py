"""Anderson mixing of the whole stationary system (Gurumurthy et al. 2021), with feasible inputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deqopt.fixed_point.anderson import AndersonMixing, MixingType
from deqopt.ranges import not_negative
from deqopt.solvers.mixing import JointMixing
from deqopt.solvers.system import JointSystem


@dataclass(frozen=True)
class JointAnderson(JointMixing):
    """Anderson mixing of z, mu and x at once.

    Args:
        ridge: regularisation of the mixture, relative to differences of unit length.
        kind: type of mixing: type I approximates the Jacobian, type II minimises the residual. The solution is a
            saddle of the Lagrangian, and far from it a smaller residual does not mean progress. So type II gets stuck
            more often.

    Example, with the problem and the start of :class:`deqopt.JointProblem`'s:
        >>> JointAnderson(tol=1e-5).solve(problem, z0, x0).x[0]
        tensor([0.4000, 0.4000, 0.4000])
    """

    ridge: float = 1e-4
    kind: MixingType = MixingType.I

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(ridge=self.ridge)

    def begin(self, system: JointSystem, states: Tensor, x: Tensor) -> AndersonMixing:
        return AndersonMixing(system.join(states, x), self.history_size, self.ridge, system.widths, self.kind)
