"""Anderson mixing of the whole stationary system (Gurumurthy et al. 2021), kept feasible."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.fixed_point.anderson import AndersonMixing, check_mixing
from deqopt.solvers.base import JointEvaluation, JointLayout, JointSolver, Step


@dataclass(frozen=True)
class JointAnderson(JointSolver):
    """Anderson mixing of z, mu and x at once.

    The map is ``T(z, mu, x) = (f, g_z, Proj(x - step_size g_x))``.

    The mixture may leave the feasible set, so its input is projected before it is evaluated.

    Args:
        step_size: a, of the gradient step in x. Too large diverges, too small converges slowly.
        memory: how many points are mixed.
        damping: in (0, 1]: the share of the new residual in the mixture.
        ridge: regularises the mixture, relative to the residuals' mean square.
    """

    step_size: float = 0.1
    memory: int = 10
    damping: float = 1.0
    ridge: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mixing(self.memory, self.damping, self.ridge)
        if not self.step_size > 0:
            raise ProblemError(f"step_size must be larger than 0, got {self.step_size}")

    def stepper(self, layout: JointLayout, w: Tensor) -> Step:
        mixing = AndersonMixing(w, self.memory, self.ridge, layout.widths)
        start = 2 * layout.z.width

        def step(w: Tensor, evaluation: JointEvaluation) -> Tensor:
            x = layout.project(w[:, start:] - self.step_size * evaluation.g_x)
            proposal = mixing.mix(w, torch.cat([evaluation.image, x], dim=1), self.damping)
            return torch.cat([proposal[:, :start], layout.project(proposal[:, start:])], dim=1)

        return step
