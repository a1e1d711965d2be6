"""The two kinds of models: a decoder whose latent is fitted to images, and a classifier whose input is attacked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from benchmarks.data import Batch
from deqopt import Equilibrium, JointProblem
from deqopt.adjoints import Envelope
from deqopt.feasible import Box, FeasibleSet, Intersection, L2Ball
from deqopt.fixed_point import Damped
from deqopt.nn import Decoder, MultiscaleCell, branch_shapes
from deqopt.solvers import Tracking
from deqopt.state import State

Branches = tuple[Tensor, ...]


class Model(nn.Module, ABC):
    """An equilibrium network with the joint problem that is solved with it."""

    @abstractmethod
    def problem(self, batch: Batch) -> JointProblem:
        """What the solvers are measured on."""

    @abstractmethod
    def solved_for_training(self, batch: Batch) -> tuple[JointProblem, Equilibrium]:
        """A solution whose objective is the loss and carries gradients to the weights."""

    @abstractmethod
    def start(self, batch: Batch) -> tuple[State, Tensor]:
        """z0 and x0: zeros."""

    @abstractmethod
    def reported(self, objective: Tensor) -> Tensor:
        """The objective in the units in which it is reported, sample by sample."""

    def frozen(self) -> Model:
        """In evaluation mode, without gradients, with the weight normalisation multiplied out: a bare evaluation."""
        for module in list(self.modules()):
            if parametrize.is_parametrized(module):
                for name in list(module.parametrizations):  # type: ignore[arg-type]
                    parametrize.remove_parametrizations(module, name)
        return self.eval().requires_grad_(False)


class LatentFitting(Model):
    """``min_x |G(x) - y|^2 + prior |x|^2`` for images y at 16x16, with the decoder G of the task `celeba`.

    Args:
        widths: channels of the cell's branches, finest (8x8) first.
        latent: length of x.
    """

    def __init__(self, widths: Sequence[int], latent: int = 32, prior: float = 1e-3) -> None:
        super().__init__()
        self.latent, self.prior = latent, prior
        self.decoder = Decoder(latent=latent, widths=widths, resolution=8, image_channels=1, size=16)

    def problem(self, batch: Batch) -> JointProblem:
        return JointProblem(self._f, self._objective, data=batch.image)

    def solved_for_training(self, batch: Batch) -> tuple[JointProblem, Equilibrium]:
        """By tracking with 24 evaluations and the envelope gradient, as in the demo of the task `celeba`."""
        problem = self.problem(batch)
        solver = Tracking(max_nfe=24, step_size=2.0)
        return problem, solver.solve(problem, *self.start(batch), adjoint=Envelope(), visits=1)

    def start(self, batch: Batch) -> tuple[State, Tensor]:
        x0 = batch.image.new_zeros(batch.image.shape[0], self.latent)
        return self.decoder.start(x0), x0

    def reported(self, objective: Tensor) -> Tensor:
        """A pixel: the mean squared error, up to the prior."""
        return objective / 16**2

    def _f(self, z: Branches, x: Tensor, y: Tensor) -> State:
        return self.decoder.f(z, x)

    def _objective(self, z: Branches, x: Tensor, y: Tensor) -> Tensor:
        return (self.decoder.head(z) - y).square().flatten(1).sum(1) + self.prior * x.square().sum(1)


class Attack(Model):
    """``max_x cross-entropy`` over perturbations of bounded length, with a multiscale classifier.

    Args:
        channels: of the cell's branches, finest first.
        size: of the images, and of the finest branch.
        radius: the largest Euclidean length of x, in units of pixels from 0 to 1, as in the literature.
        valid_pixels: also keep the perturbed pixels within [0, 1].
    """

    def __init__(
        self, channels: Sequence[int] = (24, 24), size: int = 16, radius: float = 1.5, valid_pixels: bool = False
    ) -> None:
        super().__init__()
        self.radius, self.valid_pixels = radius, valid_pixels
        self.shapes = branch_shapes(channels, size)
        self.cell = MultiscaleCell(channels)
        self.inject = nn.ModuleList(
            nn.Conv2d(1, count, 2**i + 2, stride=2**i, padding=1) if i else nn.Conv2d(1, count, 3, padding=1)
            for i, count in enumerate(channels)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, count) for count in channels)
        self.linear = nn.Linear(sum(channels) * POOLED**2, 10)

    def problem(self, batch: Batch) -> JointProblem:
        return JointProblem(self._f, self._attack_objective, self._feasible(batch), data=(batch.image, batch.label))

    def solved_for_training(self, batch: Batch) -> tuple[JointProblem, Equilibrium]:
        """The cross-entropy of the clean images: plain updates, the last three of them with gradients."""
        problem = JointProblem(self._f, self._loss, data=(batch.image, batch.label))
        z0, x0 = self.start(batch)
        found = Damped(max_nfe=9, tol=0.0).solve(lambda z: problem.f(z, x0), z0)
        z = found.z
        for _ in range(3):
            z = problem.f(z, x0)
        loss = problem.J(z, x0)
        return problem, Equilibrium(z, x0, z0, loss, found.residual, found.status, found.nfe)

    def start(self, batch: Batch) -> tuple[State, Tensor]:
        z0 = tuple(batch.image.new_zeros(batch.image.shape[0], *shape) for shape in self.shapes)
        return z0, torch.zeros_like(batch.image)

    def reported(self, objective: Tensor) -> Tensor:
        """Minus the attack loss."""
        return objective

    def logits(self, z: Branches) -> Tensor:
        """(B, 10)."""
        pooled = [
            F.adaptive_avg_pool2d(F.silu(norm(part)), POOLED).flatten(1)
            for norm, part in zip(self.norms, z, strict=True)
        ]
        return self.linear(torch.cat(pooled, dim=1))

    def _feasible(self, batch: Batch) -> FeasibleSet:
        ball = L2Ball(self.radius)
        if not self.valid_pixels:
            return ball
        pixels = (batch.image + 1) / 2
        return Intersection((ball, Box(-pixels, 1 - pixels)))

    def _f(self, z: Branches, x: Tensor, data: tuple[Tensor, Tensor]) -> State:
        seen = data[0] + 2 * x
        return self.cell(z, tuple(inject(seen) for inject in self.inject))

    def _loss(self, z: Branches, x: Tensor, data: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self.logits(z), data[1], reduction="none")

    def _attack_objective(self, z: Branches, x: Tensor, data: tuple[Tensor, Tensor]) -> Tensor:
        return -self._loss(z, x, data)


POOLED = 4
"""Height and width to which the classifier's branches are pooled before the linear layer."""
