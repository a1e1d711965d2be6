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
"""The names of no attack at all, and of the one that an image withstands least."""
Samples = Callable[[Any], tuple[Tensor, Tensor]]
"""A batch to its images (B, channels, H, W) in [0, 1] and labels (B,)."""


@dataclass(frozen=True)
class AttackPlan:
    """What is asked of every image: all attacks at the threat's radius, and some of them at other radii.

    Args:
        threat: norm, and the radius that was trained for.
        attacks: at that radius.
        swept: at all ``radii``.
        radii: not negative.

    Raises:
        ProblemError: no attack, or two of one name.
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
        """Of an attack in `Scores`: its own at the threat's radius."""
        return attack.name if radius == self.threat.radius else f"{attack.name} at {radius!r}"

    @cached_property
    def asked(self) -> dict[str, tuple[Attack, float]]:
        """Attack and radius by name, each combination once."""
        pairs = [(attack, self.threat.radius) for attack in self.attacks]
        pairs += [(attack, radius) for attack in self.swept for radius in self.radii]
        return {self.name(*pair): pair for pair in pairs}

    def methods(self, model: ExactClassifier, samples: Samples) -> dict[str, Callable[[Any], Prediction]]:
        """What is seen in the images of a batch as they are, and after every attack, by name."""

        def seen(batch: Any) -> Prediction:
            return model.predict(samples(batch)[0])

        def seen_after(attack: Attack, radius: float, batch: Any) -> Prediction:
            return model.predict(attack.perturbed(model, *samples(batch), self.threat.at(radius)))

        return {NONE: seen, **{name: partial(seen_after, *pair) for name, pair in self.asked.items()}}

    def masked(self, model: ExactClassifier, images: Tensor, labels: Tensor, correct: Tensor) -> dict[str, Tensor]:
        """(B,) whether a correctly classified image gives an attack no gradient at all, as facts of `Scores`."""
        ways = {way for attack in self.attacks if (way := attack.differentiates)}
        without = {way: model.by(way).has_no_gradient(images, labels).cpu() & correct.bool() for way in ways}
        return {
            f"masked_{attack.key}": without[way].long() for attack in self.attacks if (way := attack.differentiates)
        }
