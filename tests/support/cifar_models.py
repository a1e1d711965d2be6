"""Classifiers small enough to be attacked by hand, and the joint problem of attacking them."""

from __future__ import annotations

import torch
from deqopt_tasks.cifar.attacks import MakeProblem, MakeStart
from deqopt_tasks.cifar.classifier import Classifier
from deqopt_tasks.cifar.gradients import ExactClassifier
from deqopt_tasks.cifar.losses import log_odds, rescaling
from deqopt_tasks.cifar.threat import Threat
from torch import Tensor, nn

from deqopt import JointProblem
from deqopt.fixed_point import Anderson
from deqopt.loop_settings import Norm
from deqopt.state import State

SIDE = 6
PRECISE = Anderson(max_nfe=300, tol=1e-13)
State2 = tuple[Tensor, ...]


class Toy(Classifier):
    """What the two below share: images (B, 1, side, side), random weights."""

    unroll = None

    def __init__(self, classes: int, side: int, seed: int) -> None:
        nn.Module.__init__(self)
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, side**2, generator=generator) / side)


class Linear(Toy):
    """``logits = 3 confidence W (2 image - 1)``: f does not depend on z.

    Args:
        levels: 0, or the number of grey values to which images are rounded, which leaves no gradient.
        confidence: a factor of the logits, which changes no decision.
    """

    def __init__(
        self, classes: int = 4, side: int = SIDE, levels: int = 0, seed: int = 0, confidence: float = 1.0
    ) -> None:
        super().__init__(classes, side, seed)
        self.levels, self.confidence = levels, confidence

    def f(self, z: State2, image: Tensor) -> State2:
        seen = torch.round(image * self.levels) / self.levels if self.levels else image
        return ((2 * seen - 1).flatten(1) @ self.weight.T,)

    def logits(self, z: State2) -> Tensor:
        return 3 * self.confidence * z[0]

    def start(self, image: Tensor) -> State2:
        return (image.new_zeros(len(image), len(self.weight)),)


class Contractive(Toy):
    """A state of two tensors, ``a = tanh(gain (A a + B b) + U image)`` and ``b = tanh(gain C a)``, |A|, |B|, |C| = 1.

    Args:
        gain: at 0.3 f contracts. At 0, it does not depend on z.
        bounded: without it, no tanh: a gain of 3 then grows without end.
        confidence: a factor of the head's weights, which changes no decision.
    """

    def __init__(
        self,
        gain: float = 0.3,
        classes: int = 3,
        side: int = SIDE,
        seed: int = 0,
        bounded: bool = True,
        confidence: float = 1.0,
    ) -> None:
        super().__init__(classes, side, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        self.gain, self.bounded = gain, bounded
        self.mixing = nn.ParameterList(
            matrix / torch.linalg.matrix_norm(matrix, 2) for matrix in torch.randn(3, 5, 5, generator=generator)
        )
        self.injection = nn.Parameter(torch.randn(5, side**2, generator=generator) / side)
        self.head = nn.Parameter(3 * confidence * torch.randn(classes, 10, generator=generator))

    def f(self, z: State2, image: Tensor) -> State2:
        a, b = z
        into_a, across, into_b = self.mixing
        pre = self.gain * (a @ into_a.T + b @ across.T) + (2 * image - 1).flatten(1) @ self.injection.T
        parts = pre, self.gain * a @ into_b.T
        return tuple(map(torch.tanh, parts)) if self.bounded else parts

    def logits(self, z: State2) -> Tensor:
        return torch.cat(z, dim=1) @ self.head.T

    def start(self, image: Tensor) -> State2:
        return image.new_zeros(len(image), 5), image.new_zeros(len(image), 5)


def multiscale(unroll: int | None = None) -> Classifier:
    """A classifier of the task, with weight normalisation, as it is initialised."""
    return Classifier(classes=3, image_channels=1, size=8, widths=[4, 4], resolution=8, unroll=unroll)


def images_for(count: int, side: int = SIDE, spread: float = 0.3) -> Tensor:
    """Random images around grey: half of their pixels are within ``spread / 2`` of 0.5."""
    noise = torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(7))
    return 0.5 + spread * (2 * noise - 1)


def joint(classifier: Classifier, norm: Norm) -> tuple[MakeProblem, MakeStart]:
    """The joint problem of attacking, and its start."""

    def cell(z: State2, x: Tensor, data: tuple[Tensor, Tensor, Tensor]) -> State:
        return classifier.f(z, data[0] + x)

    def objective(z: State2, x: Tensor, data: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return -log_odds(data[2] * classifier.logits(z), data[1])

    def problem(images: Tensor, labels: Tensor, radius: float) -> JointProblem:
        factor = rescaling(ExactClassifier(classifier)(images))
        return JointProblem(cell, objective, Threat(norm, radius).feasible(images), data=(images, labels, factor))

    def start(images: Tensor) -> tuple[State, Tensor]:
        return classifier.start(images), torch.zeros_like(images)

    return problem, start
