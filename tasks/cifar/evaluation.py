"""Which attacks with which radii are asked of every image, and what speaks against what they find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from deqopt.compare import Estimate, Scores, check_names
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


@dataclass(frozen=True)
class Robustness:
    """What was found on all attacked images.

    Args:
        plan: that was carried out.
        scores: of every image: ``robust_accuracy`` and ``reached`` (whether the equilibrium was, from which a class was
            read), by method; as facts those of :meth:`AttackPlan.masked`, and ``gradients`` and
            ``gradients_unreached``, the solves for gradients that its attacks made.
    """

    plan: AttackPlan
    scores: Scores

    def accuracy(self, method: str) -> Estimate:
        return Estimate.of(self.scores.of(method, "robust_accuracy"))

    def sweep(self, attack: Attack) -> dict[float, Estimate]:
        """The accuracy by radius."""
        return {radius: self.accuracy(self.plan.name(attack, radius)) for radius in self.plan.radii}

    def points(self) -> dict[str, dict[float, Estimate]]:
        """The accuracy by radius, for every attack by name, from the clean accuracy on, and for the worst of all."""
        trained, clean = self.plan.threat.radius, self.accuracy(NONE)
        points = {attack.name: {0.0: clean, **self.sweep(attack)} for attack in self.plan.swept if self.plan.radii}
        for name in (*(attack.name for attack in self.plan.attacks), WORST):
            points[name] = {**points.get(name, {}), trained: self.accuracy(name)}
        return {name: dict(sorted(of.items())) for name, of in points.items()}

    def notes(self) -> list[str]:
        """What speaks against the figures: masked gradients, and systems that were not solved."""
        notes = []
        if masking := self._masking():
            notes.append(f"{'; '.join(masking)}: the gradients are masked, do not trust the white-box figures")
        reached = torch.stack([self.scores.of(name, "reached") for name in (NONE, *self.plan.asked)]).all(0)
        if unreached := int((~reached).sum()):
            notes.append(
                f"the equilibrium of {unreached} of {len(self.scores)} images, clean or attacked, was not reached: "
                "their classes are those of where the solve stopped; train with a Jacobian penalty"
            )
        solves, lost = (round(float(self.scores.fact(name).sum())) for name in ("gradients", "gradients_unreached"))
        if lost:
            notes.append(
                f"the multiplier was not reached in {lost} of {solves} implicit gradients: the attacks that used them "
                "may be weaker than they could be"
            )
        return notes

    def _masking(self) -> list[str]:
        """Evidence that an attack by gradients is weak here because it is not shown any."""
        found = []
        shares = {attack: self.accuracy(attack.name).mean for attack in self.plan.attacks}
        by_gradients = [share for attack, share in shares.items() if not attack.black_box]
        for attack, share in shares.items():
            if attack.black_box and by_gradients and share < min(by_gradients):
                found.append(
                    f"{attack.name}, which sees no gradients, leaves {percent(share)}, less than every attack by "
                    f"gradients (at best {percent(min(by_gradients))})"
                )
        right = int(self.scores.of(NONE, "robust_accuracy").sum())
        known = [attack for attack in self.plan.attacks if f"masked_{attack.key}" in self.scores.facts]
        masked = {attack.name: int(self.scores.fact(f"masked_{attack.key}").sum()) for attack in known}
        for count in sorted({count for count in masked.values() if count}, reverse=True):
            names = " and ".join(name for name, one in masked.items() if one == count)
            found.append(f"the gradient for {names} is exactly zero at {count} of {right} correctly classified images")
        return found


def percent(share: float) -> str:
    """``43.5 %``."""
    return f"{100 * share:.1f} %"
