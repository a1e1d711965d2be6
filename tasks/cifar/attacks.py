"""What an attack is, and those by the joint solvers of deqopt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from deqopt.compare import log_name
from deqopt.errors import ProblemError
from deqopt.problem import JointProblem
from deqopt.solvers import JointSolver
from deqopt.state import State
from deqopt.weights import cached_weights

from .gradients import ExactClassifier, GradientBy
from .threat import Threat

MakeProblem = Callable[[Tensor, Tensor, float], JointProblem]
MakeStart = Callable[[Tensor], tuple[State, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A search for a perturbation that changes the class.

    Args:
        name: in tables and, in lower case with underscores, in metrics.
        seed: of what the attack draws; the global random state is left alone.
    """

    name: str
    seed: int = 0

    black_box: ClassVar[bool] = False
    """Whether it sees logits only, no gradients."""

    @property
    def key(self) -> str:
        """The name in metrics."""
        return log_name(self.name)

    @property
    def differentiates(self) -> GradientBy | None:
        """How it gets the gradient of the image; None where it asks for none."""
        return None

    def require(self) -> None:  # noqa: B027
        """Complain of what the attack needs and is not installed.

        Raises:
            ProblemError: naming what to install.
        """

    @abstractmethod
    def search(self, model: ExactClassifier, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        """Adversarial images within the threat, whose radius is positive, of images that are classified correctly.

        Called with gradients enabled, a seeded random state and the model in evaluation mode.
        """

    def perturbed(self, model: ExactClassifier, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        """Images in [0, 1] within the threat. Those that are wrongly classified as they are stay as they are.

        So a search has no say where nothing is left to find, where some of those of torchattacks break, and at a
        radius of 0 the images come back bit by bit. Mode and parameters of the model are as before, whatever happens.

        Args:
            images: (B, channels, H, W) in [0, 1].
            labels: (B,).

        Raises:
            ProblemError: the search left its set; or under ``torch.inference_mode``.
            NonFiniteError: it returned NaN.
        """
        if torch.is_inference_mode_enabled():
            raise ProblemError(
                f"{self.name} differentiates, which torch.inference_mode forbids: use torch.no_grad instead "
                "(in Lightning: Trainer(inference_mode=False))"
            )
        images, labels = images.detach(), labels.long()
        found = images.clone()
        if threat.radius == 0:
            return found
        with undisturbed(model, self.seed):
            correct = model.predict(images).label == labels
            if bool(correct.any()):
                searched = self.search(model, images[correct], labels[correct], threat)
                found[correct] = threat.checked(images[correct], searched.detach(), self.name)
        return found


@dataclass(frozen=True, kw_only=True)
class Joint(Attack):
    """The joint problem of finding another class, solved by a joint solver.

    Args:
        problem: the joint problem of images and labels at a radius; its x is what is added to the image, and minus its
            objective what is maximised (:class:`deqopt_tasks.cifar.losses.Evasion`).
        start: ``(z0, x0)`` for images.
        solver: made for a threat and images.
    """

    problem: MakeProblem
    start: MakeStart
    solver: Callable[[Threat, Tensor], JointSolver]

    @property
    def differentiates(self) -> GradientBy:
        return GradientBy.IMPLICIT

    def search(self, model: ExactClassifier, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        problem = self.problem(images, labels, threat.radius)
        return images + self.solver(threat, images).solve(problem, *self.start(images)).x


@contextmanager
def undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Evaluation mode, gradients and a seeded random state within; after it modes, parameters that require gradients,
    and generators as before.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    # All generators that a manual_seed reaches, also one inside of an attack.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    model.eval()
    try:
        with torch.random.fork_rng(devices), torch.enable_grad(), cached_weights(model):
            torch.manual_seed(seed)
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
