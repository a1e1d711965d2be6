"""The classifier for attacks: exactly solved logits, and two ways to compute their gradient in the image."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from deqopt.connection import connect
from deqopt.fixed_point import Anderson, FixedPoint, FixedPointSolver
from deqopt.iteration import Status
from deqopt.problem import JointProblem, pull_back
from deqopt.solvers.exact import solve_multiplier
from deqopt.state import State, leaf, state_of, tensors_of
from deqopt.weights import cached_weights

from .classifier import Classifier
from .losses import log_odds, rescaling


class GradientBy(Enum):
    """The method for the gradient of the logits in the image. The values of the logits are the same."""

    IMPLICIT = "implicit"
    """``u = v + (d_z f)^T u`` is solved: the gradient of the equilibrium. v is the cotangent of z."""
    UNROLLED = "unrolled"
    """The gradient of plain updates of z from its start, with the cotangent v at the exact equilibrium."""


@dataclass
class Tally:
    """The number of solved samples, and the number of these that did not reach the tolerance."""

    total: int = 0
    unreached: int = 0

    def add(self, reached: Tensor) -> None:
        self.total += len(reached)
        self.unreached += int((~reached).sum())


@dataclass(frozen=True)
class Prediction:
    """The classes with the largest logits, (B,), and whether the equilibrium was reached, (B,)."""

    label: Tensor
    reached: Tensor


class ExactClassifier(nn.Module):
    """Maps images (B, channels, H, W) in [0, 1] to logits (B, classes) at ``z = f(z, image)``, differentiable in the
    image.

    The gradient is computed in the backward pass and goes only to the image: parameters get none, and it cannot be
    differentiated again. If the image needs no gradient, nothing is kept in memory. For an unrolled network, both
    methods give its plain gradient.

    Args:
        classifier: the classifier, shared, not copied.
        gradient: method for the gradient.
        steps: number of plain updates that UNROLLED differentiates.
        solver: solver for z and for u; by default Anderson mixing with 100 evaluations and a tolerance of 1e-5.

    Attributes:
        gradients: a tally of the solves for u so far.
    """

    def __init__(
        self,
        classifier: Classifier,
        gradient: GradientBy = GradientBy.IMPLICIT,
        steps: int = 20,
        solver: FixedPointSolver | None = None,
    ) -> None:
        super().__init__()
        self.classifier, self.gradient, self.steps = classifier, gradient, steps
        self.solver = solver or Anderson(max_nfe=100, tol=1e-5)
        self.gradients = Tally()

    def by(self, gradient: GradientBy) -> ExactClassifier:
        """The same classifier with another gradient; both share one tally."""
        other = ExactClassifier(self.classifier, gradient, self.steps, self.solver)
        other.gradients, other.training = self.gradients, self.training
        return other

    def forward(self, images: Tensor) -> Tensor:
        given = images.to(next(self.parameters()).dtype)
        with torch.no_grad(), cached_weights(self):
            z = self.solve(given).z
            logits = self.classifier.logits(tensors_of(z))
        fixed = given.detach()
        (logits,) = connect([logits], [given], lambda cotangents: [self.image_gradient(fixed, z, cotangents[0])])
        return logits.to(images.dtype)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Classes of the images, and whether their equilibrium was reached."""
        images = images.to(next(self.parameters()).dtype)
        with cached_weights(self):
            solved = self.solve(images)
            logits = self.classifier.logits(tensors_of(solved.z))
        return Prediction(logits.argmax(1), solved.status == Status.CONVERGED)

    def solve(self, images: Tensor) -> FixedPoint:
        """Solve ``z = f(z, image)`` from its start, without a gradient."""
        return self.solver.solve(self._f, self.classifier.start(images), images)

    def image_gradient(self, images: Tensor, z: State, cotangent: Tensor) -> Tensor:
        """The gradient of ``<cotangent, logits>`` in the images with the equilibrium z, (B, ...) each."""
        with cached_weights(self):
            gradient, reached = self._gradient(images, z, cotangent)
        if self.gradient is GradientBy.IMPLICIT:
            self.gradients.add(reached)
        return gradient

    def has_no_gradient(self, images: Tensor, labels: Tensor) -> Tensor:
        """(B,) whether the gradient of the log-odds of a wrong class is exactly zero in every pixel, so that no attack
        can follow it. False where it is unknown, because an equilibrium or a multiplier was not reached.
        """
        images = images.detach().to(next(self.parameters()).dtype)
        with torch.enable_grad(), cached_weights(self):
            solved = self.solve(images)
            logits = self.classifier.logits(tensors_of(solved.z)).detach().requires_grad_()
            (cotangent,) = torch.autograd.grad(log_odds(rescaling(logits) * logits, labels).sum(), logits)
            gradient, reached = self._gradient(images, solved.z, cotangent)
        return (solved.status == Status.CONVERGED) & reached & (gradient == 0).flatten(1).all(1)

    def _gradient(self, images: Tensor, z: State, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """And whether what had to be solved for was reached, (B,).

        Of IMPLICIT: with ``J = <cotangent, logits(z)>`` u is the multiplier, and the gradient is the Lagrangian's g_x.
        """
        if self.gradient is GradientBy.UNROLLED:
            return self._unrolled(images, z, cotangent), torch.ones_like(cotangent[:, 0], dtype=torch.bool)
        problem = JointProblem(self._f, lambda z, _: (self.classifier.logits(z) * cotangent).sum(1))
        start = state_of((torch.zeros_like(part) for part in tensors_of(z)), z)
        u = solve_multiplier(problem, z, images, start, self.solver)
        return problem.evaluate(z, images, u.z).g_x, u.status == Status.CONVERGED

    def _unrolled(self, images: Tensor, z: State, cotangent: Tensor) -> Tensor:
        with torch.enable_grad():
            at = leaf(z)
            v = pull_back([self.classifier.logits(tensors_of(at))], tensors_of(at), [cotangent])
            images = images.detach().requires_grad_()
            state: State = self.classifier.start(images)
            for _ in range(self.steps if self.classifier.unroll is None else 1):
                state = self._f(state, images)
            (gradient,) = pull_back(tensors_of(state), [images], v)
        return gradient

    def _f(self, z: State, images: Tensor) -> State:
        return self.classifier.f(tensors_of(z), images)
