"""The base class of attacks, and the attacks by the joint solvers of deqopt."""

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
        name: name in tables and, in lower case with underscores, in metrics.
        seed: seed of the random numbers of the attack, which does not change the global random state.
    """

    name: str
    seed: int = 0

    black_box: ClassVar[bool] = False
    """Whether the attack uses logits only, no gradients."""

    @property
    def key(self) -> str:
        """The name in metrics."""
        return log_name(self.name)

    @property
    def differentiates(self) -> GradientBy | None:
        """How the attack computes the gradient of the image; None if it uses no gradient."""
        return None

    def require(self) -> None:  # noqa: B027
        """Check that everything that the attack needs is installed.

        Raises:
            ProblemError: a package is missing; the message tells how to install it.
        """

    @abstractmethod
    def search(self, model: ExactClassifier, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        """Search for adversarial images within the threat (of positive radius), for correctly classified images.

        Called with gradients enabled, a seeded random state and the model in evaluation mode.
        """

    def perturbed(self, model: ExactClassifier, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        """The attacked images, in [0, 1] and within the threat. Images that are already misclassified stay unchanged.

        So the search does not run on images where nothing is left to find, on which some attacks of torchattacks fail.
        With a radius of 0, the images are returned unchanged bit for bit. Mode and parameters of the model are always
        restored, also after an error.

        Args:
            images: (B, channels, H, W) in [0, 1].
            labels: (B,).

        Raises:
            ProblemError: the search left its set, or ``torch.inference_mode`` is on.
            NonFiniteError: the search returned NaN.
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
    """An attack that solves the joint problem of finding another class by a joint solver.

    Args:
        problem: function from images, labels and a radius to the joint problem. Its x is added to the image, and minus
            its objective is maximised (:class:`deqopt_tasks.cifar.losses.Evasion`).
        start: function from images to ``(z0, x0)``.
        solver: function from a threat and images to the solver.
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
    """Within the block: evaluation mode, gradients enabled and a seeded random state. Afterwards, modes, the
    requires_grad of parameters and the generators are restored.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    # All generators that a manual_seed changes, also a manual_seed inside an attack.
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
