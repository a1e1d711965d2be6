"""The attacks and radii that are applied to every image, and warnings about unreliable results."""

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


@dataclass(frozen=True)
class Robustness:
    """The results for all attacked images.

    Args:
        plan: the plan that was carried out.
        scores: scores of every image by method: ``robust_accuracy`` and ``reached`` (whether the equilibrium of the
            prediction was reached). The facts are those of :meth:`AttackPlan.masked`, and ``gradients`` and
            ``gradients_unreached``, the numbers of solves for gradients by the attacks on the image.
    """

    plan: AttackPlan
    scores: Scores

    def accuracy(self, method: str) -> Estimate:
        return Estimate.of(self.scores.of(method, "robust_accuracy"))

    def sweep(self, attack: Attack) -> dict[float, Estimate]:
        """The accuracy by radius."""
        return {radius: self.accuracy(self.plan.name(attack, radius)) for radius in self.plan.radii}

    def points(self) -> dict[str, dict[float, Estimate]]:
        """The accuracy by radius, from the clean accuracy on, for every attack by name and for the worst attack."""
        trained, clean = self.plan.threat.radius, self.accuracy(NONE)
        points = {attack.name: {0.0: clean, **self.sweep(attack)} for attack in self.plan.swept if self.plan.radii}
        for name in (*(attack.name for attack in self.plan.attacks), WORST):
            points[name] = {**points.get(name, {}), trained: self.accuracy(name)}
        return {name: dict(sorted(of.items())) for name, of in points.items()}

    def notes(self) -> list[str]:
        """Warnings about the results: masked gradients, and systems that were not solved."""
        notes = []
        if masking := self._masking():
            notes.append(f"{'; '.join(masking)}: the gradients are masked, do not trust the white-box figures")
        reached = torch.stack([self.scores.of(name, "reached") for name in (NONE, *self.plan.asked)]).all(0)
        if unreached := int((~reached).sum()):
            notes.append(
                f"the equilibrium of {unreached} of {len(self.scores)} images, clean or attacked, was not reached: "
                "their classes come from the last iterate of the solve; train with a Jacobian penalty"
            )
        solves, lost = (round(float(self.scores.fact(name).sum())) for name in ("gradients", "gradients_unreached"))
        if lost:
            notes.append(
                f"the multiplier was not reached in {lost} of {solves} implicit gradients: the attacks that used them "
                "may be weaker than they could be"
            )
        return notes

    def _masking(self) -> list[str]:
        """Evidence that gradients are masked, so that attacks that use gradients are weak."""
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
