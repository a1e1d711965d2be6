"""Which images withstand which attacks, counted, and what the counts say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.tables import aligned

from .attacks import Attack
from .gradients import ExactClassifier, Tally
from .threat import Threat


@dataclass(frozen=True)
class Trial:
    """An attack with a radius."""

    attack: Attack
    radius: float


@dataclass(frozen=True)
class Verdicts:
    """What became of the images of a batch.

    Attributes:
        clean: (B,) whether they are classified correctly as they are.
        withstood: (trials, B) whether they are after each trial.
        worst: (B,) whether they are after every attack at the threat's radius.
        reached: (B,) whether every equilibrium that a class was read off was reached.
        gradients: solves for gradients that the attacks made.
        masked: (attacks, B) whether they are classified correctly and the gradient that the attack would follow is
            exactly zero there.
    """

    clean: Tensor
    withstood: Tensor
    worst: Tensor
    reached: Tensor
    gradients: Tally
    masked: Tensor

    def counts(self) -> Tensor:
        """Whole numbers that add up over batches and processes; :meth:`Robustness.summary` reads them."""
        sums = [int(part.sum()) for part in (self.clean, self.worst, ~self.reached)]
        solves = [self.gradients.total, self.gradients.unreached]
        trials = [*self.withstood.sum(1).tolist(), *self.masked.sum(1).tolist()]
        return torch.tensor([len(self.clean), *sums, *solves, *trials])


@dataclass(frozen=True)
class Summary:
    """Shares of images, 0 to 1, that are classified correctly.

    Attributes:
        threat: that was evaluated.
        images: how many were attacked.
        clean: without an attack.
        attacked: after each attack at the threat's radius.
        worst: after all of them.
        sweep: after the swept attacks at every radius.
        unreached: images of which an equilibrium was not reached, so that their class is not to be trusted.
        gradients: solves for the attacks' gradients.
        masked: by attack, the number of images that are classified correctly and from which it cannot start, because
            its gradient there is exactly zero; attacks without such an image are left out.
    """

    threat: Threat
    images: int
    clean: float
    attacked: dict[Attack, float]
    worst: float
    sweep: dict[Trial, float]
    unreached: int
    gradients: Tally
    masked: dict[Attack, int]

    def notes(self) -> list[str]:
        """What speaks against the figures: masked gradients, and systems that were not solved."""
        notes = []
        if masking := self._masking():
            notes.append(f"{'; '.join(masking)}: the gradients are masked, do not trust the white-box figures")
        if self.unreached:
            notes.append(
                f"the equilibrium of {self.unreached} of {self.images} images, clean or attacked, was not reached: "
                "their classes are those of where the solve stopped; train with a Jacobian penalty"
            )
        if self.gradients.unreached:
            notes.append(
                f"the multiplier was not reached in {self.gradients.unreached} of {self.gradients.total} implicit "
                "gradients: the attacks that used them may be weaker than they could be"
            )
        return notes

    def _masking(self) -> list[str]:
        """Evidence that an attack by gradients is weak here because it is not shown any."""
        found = []
        by_gradients = [share for attack, share in self.attacked.items() if not attack.black_box]
        for attack, share in self.attacked.items():
            if attack.black_box and by_gradients and share < min(by_gradients):
                found.append(
                    f"{attack.name}, which sees no gradients, leaves {percent(share)}, less than every attack by "
                    f"gradients (at best {percent(min(by_gradients))})"
                )
        right = round(self.clean * self.images)
        for count in sorted(set(self.masked.values()), reverse=True):
            names = " and ".join(attack.name for attack, one in self.masked.items() if one == count)
            found.append(f"the gradient for {names} is exactly zero at {count} of {right} correctly classified images")
        return found

    def report(self, seen: int) -> str:
        """A readable table of all shares, and the notes, where ``seen`` images were there to be attacked."""
        rows = [["", "accuracy", "sees"], ["clean", percent(self.clean), ""]]
        rows += [
            [attack.name, percent(share), "logits" if attack.black_box else "gradients"]
            for attack, share in self.attacked.items()
        ]
        rows.append(["worst of all", percent(self.worst), ""])
        lines = [f"Robustness of {self.images} of {seen} test images, {self.threat}", aligned(rows)]
        if self.sweep:
            radii = sorted({trial.radius for trial in self.sweep})
            swept = {trial.attack: trial.attack.name for trial in self.sweep}
            lines.append("Accuracy against radius")
            table = [["radius", *(f"{radius:g}" for radius in radii)]]
            for attack, name in swept.items():
                table.append([name, *(percent(self.sweep[Trial(attack, radius)]) for radius in radii)])
            lines.append(aligned(table))
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes())])


@dataclass(frozen=True)
class Robustness:
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
        names = [attack.key for attack in dict.fromkeys((*self.attacks, *self.swept))]
        for name in names:
            if names.count(name) > 1:
                raise ProblemError(f"two attacks are called {name!r}: give them names of their own")
        for radius in self.radii:
            self.threat.at(radius)

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """Each combination once."""
        asked = [Trial(attack, self.threat.radius) for attack in self.attacks]
        asked += [Trial(attack, radius) for attack in self.swept for radius in self.radii]
        return tuple(dict.fromkeys(asked))

    def judge(self, model: ExactClassifier, images: Tensor, labels: Tensor) -> Verdicts:
        """The verdicts on images (B, channels, H, W) in [0, 1] with labels (B,)."""
        before = replace(model.gradients)
        clean = model.predict(images)
        reached, withstood = clean.reached, []
        for trial in self.trials:
            found = model.predict(trial.attack.perturbed(model, images, labels, self.threat.at(trial.radius)))
            reached = reached & found.reached
            withstood.append(found.label == labels)
        attacked = [verdict for trial, verdict in zip(self.trials, withstood, strict=True) if self._asked(trial)]
        solves = Tally(model.gradients.total - before.total, model.gradients.unreached - before.unreached)
        worst, right = torch.stack(attacked).all(0), clean.label == labels
        return Verdicts(
            right, torch.stack(withstood), worst, reached, solves, self._masked(model, images, clean.label) & right
        )

    def no_counts(self) -> Tensor:
        """The counts of no image at all."""
        return torch.zeros(6 + len(self.trials) + len(self.attacks), dtype=torch.long)

    def summary(self, counts: Sequence[int]) -> Summary:
        """The shares, of counts that were added up over batches."""
        images, clean, worst, unreached, total, lost, *trials = counts
        withstood, masked = trials[: len(self.trials)], trials[len(self.trials) :]
        shares = {trial: count / images for trial, count in zip(self.trials, withstood, strict=True)}
        return Summary(
            threat=self.threat,
            images=images,
            clean=clean / images,
            attacked={attack: shares[Trial(attack, self.threat.radius)] for attack in self.attacks},
            worst=worst / images,
            sweep={trial: shares[trial] for trial in self.trials if self._swept(trial)},
            unreached=unreached,
            gradients=Tally(total, lost),
            masked={attack: count for attack, count in zip(self.attacks, masked, strict=False) if count},
        )

    def _masked(self, model: ExactClassifier, images: Tensor, labels: Tensor) -> Tensor:
        """(attacks, B) whether an attack would get no gradient at all."""
        ways = {way for attack in self.attacks if (way := attack.differentiates)}
        masked = {way: model.by(way).has_no_gradient(images, labels) for way in ways}
        never = torch.zeros_like(labels, dtype=torch.bool)
        return torch.stack([masked[way] if (way := attack.differentiates) else never for attack in self.attacks])

    def _asked(self, trial: Trial) -> bool:
        return trial.attack in self.attacks and trial.radius == self.threat.radius

    def _swept(self, trial: Trial) -> bool:
        return trial.attack in self.swept and trial.radius in self.radii


def percent(share: float) -> str:
    """``43.5 %``."""
    return f"{100 * share:.1f} %"
