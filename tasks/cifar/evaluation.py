"""Which attacks with which radii are asked of every image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from deqopt.compare import check_names
from deqopt.errors import ProblemError

from .attacks import Attack
from .gradients import ExactClassifier, Prediction
from .threat import Threat

NONE, WORST = "none", "worst"
"""The names for no attack, and for the worst attack on each image."""
Samples = Callable[[Any], tuple[Tensor, Tensor]]
"""A function from a batch to its images (B, channels, H, W) in [0, 1] and labels (B,)."""


@dataclass(frozen=True)
class AttackPlan:
    """The attacks that are applied to every image: all at the radius of the threat, and some also at other radii.

    Args:
        threat: norm and radius that were used in training.
        attacks: attacks at that radius.
        swept: attacks at all ``radii``.
        radii: radii of the swept attacks, not negative.

    Raises:
        ProblemError: there is no attack, or two attacks have the same name.
    """

    threat: Threat
    attacks: tuple[Attack, ...]
    swept: tuple[Attack, ...] = ()
    radii: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.attacks:
            raise ProblemError("robustness needs at least one attack")
        check_names([NONE, WORST, *(attack.name for attack in dict.fromkeys((*self.attacks, *self.swept)))])
        for radius in self.radii:
            self.threat.at(radius)

    def name(self, attack: Attack, radius: float) -> str:
        """The name of an attack in `Scores`; at the radius of the threat, its plain name."""
        return attack.name if radius == self.threat.radius else f"{attack.name} at {radius!r}"

    @cached_property
    def asked(self) -> dict[str, tuple[Attack, float]]:
        """All combinations of attack and radius by name, each once."""
        pairs = [(attack, self.threat.radius) for attack in self.attacks]
        pairs += [(attack, radius) for attack in self.swept for radius in self.radii]
        return {self.name(*pair): pair for pair in pairs}

    def methods(self, model: ExactClassifier, samples: Samples) -> dict[str, Callable[[Any], Prediction]]:
        """The predictions for the images of a batch without an attack and after every attack, by name."""

        def seen(batch: Any) -> Prediction:
            return model.predict(samples(batch)[0])

        def seen_after(attack: Attack, radius: float, batch: Any) -> Prediction:
            return model.predict(attack.perturbed(model, *samples(batch), self.threat.at(radius)))

        return {NONE: seen, **{name: partial(seen_after, *pair) for name, pair in self.asked.items()}}

    def masked(self, model: ExactClassifier, images: Tensor, labels: Tensor, correct: Tensor) -> dict[str, Tensor]:
        """(B,) whether the gradient of a correctly classified image is exactly zero, as facts of `Scores`."""
        ways = {way for attack in self.attacks if (way := attack.differentiates)}
        without = {way: model.by(way).has_no_gradient(images, labels).cpu() & correct.bool() for way in ways}
        return {
            f"masked_{attack.key}": without[way].long() for attack in self.attacks if (way := attack.differentiates)
        }
