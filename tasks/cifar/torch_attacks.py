"""The attacks of torchattacks (Kim 2020), an optional package, on exactly solved classifiers.

They get contiguous float32 images, and all pitfalls that were found in version 3.5.1 are avoided: see the comments, and
:meth:`deqopt_tasks.cifar.attacks.Attack.perturbed`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

from torch import Tensor, nn

from deqopt.errors import ProblemError
from deqopt.loop_settings import Norm

from .attacks import Attack
from .gradients import ExactClassifier, GradientBy
from .losses import rescaling
from .threat import Threat

NORMS = {Norm.L2: "L2", Norm.LINF: "Linf"}
SMALLEST = 5
"""Height and width below which Square divides by zero in L2: its first squares are a fifth of the image."""


class Rescaled(nn.Module):
    """Maps images to the logits of a model times their :func:`rescaling`, which counts as constant in the gradient.

    The predictions are those of the model. But attacks on the cross-entropy do not depend on the confidence of the
    model, and get a gradient where that of the model itself has vanished.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return rescaling(logits) * logits


@dataclass(frozen=True, kw_only=True)
class TorchAttack(Attack):
    """An attack of torchattacks. Its images are float32, for every precision of the model."""

    squares: ClassVar[bool] = False
    """Whether the attack uses Square."""

    def require(self) -> None:
        self._package()

    def search(self, model: ExactClassifier, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        side = min(images.shape[-2:])
        if self.squares and threat.norm is Norm.L2 and side < SMALLEST:
            raise ProblemError(
                f"{self.name} in L2 needs images of {SMALLEST}x{SMALLEST} or larger, but these have a side of {side}"
            )
        run = self.build(self._package(), model, threat)
        found: Tensor = run(images.float().contiguous(), labels)
        return found.to(images.dtype)

    @abstractmethod
    def build(self, package: ModuleType, model: ExactClassifier, threat: Threat) -> Callable[[Tensor, Tensor], Tensor]:
        """The attack of the package: a function from images and labels to adversarial images."""

    def _package(self) -> ModuleType:
        try:
            import torchattacks
        except ImportError as error:
            raise ProblemError(
                f"the attack {self.name} needs the extra adversarial: pip install 'deqopt[adversarial]'; "
                "--task.attacks [SOLVERS] works without it"
            ) from error
        package: ModuleType = torchattacks
        return package


@dataclass(frozen=True, kw_only=True)
class GradientAttack(TorchAttack):
    """The attacks of torchattacks that use gradients.

    Args:
        gradient: method for the gradient through the equilibrium.
    """

    gradient: GradientBy = GradientBy.IMPLICIT

    @property
    def differentiates(self) -> GradientBy:
        return self.gradient

    def attacked(self, model: ExactClassifier) -> nn.Module:
        """The model that the package gets."""
        return Rescaled(model.by(self.gradient))


@dataclass(frozen=True, kw_only=True)
class PGD(GradientAttack):
    """Projected gradient ascent of the cross-entropy of rescaled logits from a random start (Madry et al. 2018).

    Args:
        steps: number of steps.
        step: length of a step, in units of ``radius / steps``.
    """

    name: str = "PGD"
    steps: int = 50
    step: float = 2.5

    def build(self, package: ModuleType, model: ExactClassifier, threat: Threat) -> Callable[[Tensor, Tensor], Tensor]:
        kind = package.PGDL2 if threat.norm is Norm.L2 else package.PGD
        length = self.step * threat.radius / self.steps
        return kind(self.attacked(model), eps=threat.radius, alpha=length, steps=self.steps, random_start=True)


@dataclass(frozen=True, kw_only=True)
class APGD(GradientAttack):
    """Auto-PGD on the cross-entropy of rescaled logits (Croce and Hein 2020), which adapts its step size.

    Images for which it finds no other class are returned unchanged.
    """

    name: str = "APGD"
    steps: int = 50

    def build(self, package: ModuleType, model: ExactClassifier, threat: Threat) -> Callable[[Tensor, Tensor], Tensor]:
        attacked = self.attacked(model)
        return package.APGD(attacked, norm=NORMS[threat.norm], eps=threat.radius, steps=self.steps, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Square(TorchAttack):
    """Square attack (Andriushchenko et al. 2020): random search that uses only logits.

    Images for which it finds no other class are returned unchanged. In L2, images must be 5 x 5 or larger.
    """

    black_box: ClassVar[bool] = True
    squares: ClassVar[bool] = True

    name: str = "Square"
    queries: int = 1000

    def build(self, package: ModuleType, model: ExactClassifier, threat: Threat) -> Callable[[Tensor, Tensor], Tensor]:
        return package.Square(model, norm=NORMS[threat.norm], eps=threat.radius, n_queries=self.queries, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class AutoAttack(GradientAttack):
    """The standard ensemble (Croce and Hein 2020): APGD, targeted APGD, targeted FAB and Square, each on the images
    that withstood the attacks before.

    The ensemble is put together here, because torchattacks gives its gradient attacks 10 steps instead of the published
    100, and takes its seeds from the clock. With fewer than four classes, targeted APGD is left out: its loss needs the
    fourth largest logit.

    Args:
        classes: number of classes of the classifier; at most nine other classes are targeted, as published.
        steps: steps of each gradient attack for each target.
        queries: queries of Square.
    """

    squares: ClassVar[bool] = True

    name: str = "AutoAttack"
    classes: int
    steps: int = 100
    queries: int = 5000

    def build(self, package: ModuleType, model: ExactClassifier, threat: Threat) -> Callable[[Tensor, Tensor], Tensor]:
        attacked = self.attacked(model)  # one model for all attacks, as MultiAttack demands
        threatened = {"norm": NORMS[threat.norm], "eps": threat.radius, "seed": self.seed}
        targeted = {**threatened, "steps": self.steps, "n_classes": min(self.classes, 10)}
        parts = [package.APGD(attacked, **threatened, steps=self.steps)]
        if self.classes >= 4:
            parts.append(package.APGDT(attacked, **targeted))
        parts.append(package.FAB(attacked, **targeted, multi_targeted=True))
        parts.append(package.Square(attacked, **threatened, n_queries=self.queries))
        return package.MultiAttack(parts)
