"""What the contests are about: decoders of the task `celeba` and a classifier of `cifar`, trained once on digits.

Afterwards they are read from the output folder.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from deqopt_tasks.celeba.task import CelebA
from deqopt_tasks.cifar.losses import cross_entropy
from deqopt_tasks.cifar.task import Cifar
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deqopt import Equilibrium, JointModule, JointProblem, Task
from deqopt.adjoints import Envelope
from deqopt.batch import mapped
from deqopt.feasible import L2Ball
from deqopt.fixed_point import Damped
from deqopt.nn.injections import GAIN
from deqopt.regularizers import JacobianPenalty
from deqopt.solvers import Tracking
from deqopt.state import State, tensors_of
from deqopt.weights import cached_weights

SIZE = 16
"""Height and width of the images."""
RADIUS = 1.5
"""The largest Euclidean length of a perturbation, in pixel values from 0 to 1."""
BATCH = 32
LR = 2e-3
PENALTY = JacobianPenalty(weight=1.0, visits=1)
TaskT = TypeVar("TaskT", bound=Task)


def frozen(task: TaskT) -> TaskT:
    """In evaluation mode, without gradients, with the weight normalisation multiplied out: a bare evaluation."""
    for module in list(task.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name)
    return task.eval().requires_grad_(False)


def rows_of(batch: Any, rows: Tensor | slice) -> Any:
    """Some of the samples of a batch."""
    return mapped(batch, lambda part: part[rows])


def to_device(batch: Any, device: torch.device) -> Any:
    return mapped(batch, lambda part: part.to(device))


class AttackedClassifier(Cifar):  # type: ignore[misc]
    """The network of the task `cifar`, attacked from z = 0 by perturbations of which the length alone is bounded.

    Args:
        size: height and width of the images.
    """

    def __init__(self, size: int = SIZE) -> None:
        super().__init__(size=size, image_channels=1, widths=[24, 24], resolution=size, radius=RADIUS)
        with torch.no_grad():
            for weight in self.classifier.injection.parameters():
                weight.div_(GAIN)  # the tables in docs/benchmarks.md are of weights that start as PyTorch has them

    def start(self, batch: Any) -> tuple[State, Tensor]:
        return self.classifier.zeros(batch.image), torch.zeros_like(batch.image)

    def problem(self, batch: Any) -> JointProblem:
        objective = partial(self._objective, self.training_loss)
        return JointProblem(self._f, objective, L2Ball(self.threat.radius), data=(batch.image, batch.label))

    def clean_loss(self, batch: Any) -> Tensor:
        """The mean cross-entropy of images as they are, and the penalty. No joint problem: plain updates of z, the last
        three with gradients."""
        problem, (z0, x0) = self.problem(batch), self.start(batch)
        found = Damped(max_nfe=9, tol=0.0).solve(lambda z: problem.f(z, x0), z0)
        z = found.z
        for _ in range(3):
            z = problem.f(z, x0)
        loss = cross_entropy(self.classifier.logits(tensors_of(z)), batch.label)
        solved = Equilibrium(z, x0, z0, loss, found.residual, found.status, found.nfe)
        return loss.mean() + PENALTY.weight * PENALTY.penalty(problem, solved)


def decoder(widths: list[int]) -> CelebA:
    """An untrained decoder with branches of so many channels, the finest at half the size of the images."""
    return CelebA(size=SIZE, image_channels=1, latent=32, widths=widths)


def fitting_loss(task: CelebA) -> Callable[[Any], Tensor]:
    """What `JointModule` differentiates, with the solver of the task's demo and fewer evaluations."""
    module = JointModule(task, Tracking(max_nfe=24, step_size=2.0), Envelope(), [PENALTY])
    return lambda batch: module.loss_of(batch).total


@dataclass(frozen=True)
class Digits:
    """Three splits of the 1797 digits, with no image in two of them.

    Attributes:
        train: 1197 images, which the models are trained on.
        validation: 300, on which step sizes and step counts are chosen.
        test: 300, of which the reported figures are.
    """

    train: Any
    validation: Any
    test: Any

    @classmethod
    def of(cls, task: CelebA | Cifar, seed: int) -> Digits:
        """As a task without a ``root`` opens them; ``seed`` fixes the division."""
        source = task.data.source
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed)).tolist()
        batch = task.data.collate(training=False)([source[row] for row in order])
        return cls(*(rows_of(batch, part) for part in (slice(-600), slice(-600, -300), slice(-300, None))))


@dataclass(frozen=True)
class ContestModel:
    """A model and how it is trained: by one-cycle Adam with clipped gradients.

    Attributes:
        name: of its contest and its file.
        make: an untrained one.
        loss_of: the loss to differentiate, of a model and a batch.
        steps: of training.
        unit: what the objective is divided by where it is reported.
        told: what is reported then.
    """

    name: str
    make: Callable[[], Any]
    loss_of: Callable[[Any], Callable[[Any], Tensor]]
    steps: int
    unit: float
    told: str

    def load(self, folder: Path, seed: int, steps: int | None = None) -> tuple[Any, Digits]:
        """The frozen model, from ``folder`` where it was trained before, and its images.

        Args:
            folder: where models are kept.
            seed: of weights, batches and the division of the images.
            steps: in place of ``self.steps``.
        """
        recipe = replace(self, steps=self.steps if steps is None else steps)
        torch.manual_seed(seed)
        model = recipe.make()
        digits = Digits.of(model, seed)
        key = hashlib.sha256(f"{model} {recipe.steps} {BATCH} {LR} {PENALTY} {seed}".encode()).hexdigest()[:12]
        path = folder / f"{self.name}-{key}.pt"
        if not path.exists():
            print(f"training {self.name}, {recipe.steps} steps", flush=True)
            recipe.train(model, digits.train, seed)
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), path)
        model.load_state_dict(torch.load(path, weights_only=True))
        return frozen(model), digits

    def train(self, model: nn.Module, images: Any, seed: int) -> None:
        """Train ``model`` in place."""
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=LR)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=self.steps)
        loss_of = self.loss_of(model)
        started = time.perf_counter()
        for step in range(1, self.steps + 1):
            rows = torch.randint(len(images.image), (BATCH,), generator=generator)
            optimizer.zero_grad()
            with cached_weights(model):
                loss = loss_of(rows_of(images, rows))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 100 == 0:
                print(f"  step {step}: loss {loss:.4f}, {time.perf_counter() - started:.0f} s", flush=True)


SQUARED = "squared error a pixel, of pixels from -1 to 1, with the prior"
DECODER_A = ContestModel("decoder-a", partial(decoder, [24]), fitting_loss, 1200, SIZE**2, SQUARED)
DECODER_B = ContestModel("decoder-b", partial(decoder, [24, 48]), fitting_loss, 500, SIZE**2, SQUARED)
CLASSIFIER = ContestModel(
    "classifier",
    AttackedClassifier,
    lambda model: model.clean_loss,
    300,
    1.0,
    "minus the cross-entropy that the attack reaches",
)
