"""Broyden's good method on the whole stationary system, kept feasible."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deqopt.fixed_point.broyden import BroydenUpdates
from deqopt.solvers.mixing import JointMixing
from deqopt.solvers.system import JointSystem


@dataclass(frozen=True)
class JointBroyden(JointMixing):
    """Broyden's good method with limited memory for z, mu and x at once.

    It wants shorter steps than :class:`JointAnderson`: of random problems of about unit size it solves 93 to 100 % with
    normalised steps of 0.1, 18 to 52 % with steps of 1.
    """

    step_size: float = 0.1

    def begin(self, system: JointSystem, states: Tensor, x: Tensor) -> BroydenUpdates:
        return BroydenUpdates(system.join(states, x), self.history_size, system.widths)
