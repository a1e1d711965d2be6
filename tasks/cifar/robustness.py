"""The callbacks that measure accuracy: on images as they are, and what withstands attacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from deqopt.batch import size_of
from deqopt.callbacks.comparison import ComparisonReport
from deqopt.compare import Estimate, Measure, Summary
from deqopt.compare.scores import cell
from deqopt.equilibrium import Equilibrium
from deqopt.figures import draw_curves, write_figure
from deqopt.tables import folded, write_csv

from .attacks import Attack
from .classifier import Classifier
from .evaluation import NONE, WORST, AttackPlan, Samples
from .gradients import ExactClassifier, Prediction
from .threat import Threat

RADII = (0.0, 0.5, 1.0, 1.5, 2.0)
"""The radii of the sweep, in units of the radius of the threat."""
ACCURACY = Measure("robust_accuracy", "accuracy in %", factor=100, digits=1, bounds=(0, 1))
SECONDS = Measure("seconds", "s/image", digits=3, median=True)


class RobustnessReport(ComparisonReport):
    """In test: attacks the first test images; see `ComparisonReport`.

    The metric is ``robust_accuracy``; the methods are ``none`` (the same images without an attack), the attacks, and
    ``worst``: whether an image withstands every attack. ``reached`` says whether the equilibrium was, from which a
    class was read. Facts are those of :meth:`AttackPlan.masked`, and ``gradients`` and ``gradients_unreached``, the
    solves for gradients that the attacks made. ``test/sweep_<attack>_<radius>`` are logged too. The files are
    ``figures/attacks.*``, ``figures/images.csv``, and ``figures/robustness.*``: accuracy against radius.

    Args:
        classifier: classifier to attack.
        samples: function from a batch to its images (B, channels, H, W) in [0, 1] and labels (B,).
        threat: norm and radius that were used in training.
        attacks: attacks at that radius.
        swept: attacks at all ``radii``.
        radii: radii of the sweep; by default 0, 1/2, 1, 3/2 and 2 times that of the threat.
        images: largest total number of images that are attacked.

    Raises:
        ProblemError: there is no image or no attack, or two attacks have the same name; when the test starts, an attack
            needs a package that is not installed.
    """

    def __init__(
        self,
        classifier: Classifier,
        samples: Samples,
        threat: Threat,
        attacks: Sequence[Attack],
        swept: Sequence[Attack] = (),
        radii: Sequence[float] | None = None,
        images: int = 256,
    ) -> None:
        radii = [share * threat.radius for share in RADII] if radii is None else radii
        self.plan = AttackPlan(threat, tuple(attacks), tuple(swept), tuple(radii))
        self._model, self._samples = ExactClassifier(classifier), samples
        super().__init__("attacks", [ACCURACY, SECONDS], self._scores, noun="images", most=images)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that all packages are installed before the test starts."""
        if stage == "test":
            for attack, _ in self.plan.asked.values():
                attack.require()

    def methods(self, trainer: Trainer) -> Mapping[str, Callable[[Any], Prediction]]:
        return self.plan.methods(self._model, self._samples)

    def more(self, values: Any, equilibrium: Equilibrium, batch: Any) -> Any:
        shares = torch.stack([values[attack.name]["robust_accuracy"] for attack in self.plan.attacks])
        clean, solves, size = values[NONE]["robust_accuracy"], self._model.gradients, size_of(batch)
        facts = {
            "gradients": torch.full((size,), solves.total / size),
            "gradients_unreached": torch.full((size,), solves.unreached / size),
            **self.plan.masked(self._model, *self._samples(batch), clean.cpu()),
        }
        solves.total = solves.unreached = 0
        return {WORST: {"robust_accuracy": shares.all(0)}}, facts

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

    def summary(self) -> Summary:
        """The summary of the attacks at the radius of the threat."""
        names = [NONE, *(attack.name for attack in self.plan.attacks), WORST]
        sees = {attack.name: "logits" if attack.black_box else "gradients" for attack in self.plan.attacks}
        return Summary(self.scores.only(names), self.measures, self.noun, {"sees": sees})

    def title(self) -> str:
        return f"{super().title()}, {self.plan.threat}"

    def table(self) -> str:
        swept = {attack.name: self.sweep(attack) for attack in self.plan.swept}
        columns = [
            [f"{radius:g}", *(ACCURACY.shown(of[radius].mean) for of in swept.values())]
            for radius in sorted(self.plan.radii)
        ]
        sweep = ["Accuracy in % against radius", folded(["radius", *swept], columns)] if swept and columns else []
        return "\n".join([super().table(), *sweep])

    def notes(self) -> list[str]:
        return [f"Note: {doubt}" for doubt in self.doubts()]

    def doubts(self) -> list[str]:
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

    def logged(self) -> dict[str, float]:
        sweep = {
            f"sweep_{attack.key}_{radius:g}": accuracy.mean
            for attack in self.plan.swept
            for radius, accuracy in self.sweep(attack).items()
        }
        return {**super().logged(), **sweep}

    def write(self, directory: Path) -> None:
        super().write(directory)
        write_figure(accuracy_against_radius(self), directory / "robustness.png")
        norm = self.plan.threat.norm.name
        rows = [
            [name, norm, radius, one.mean, cell(one.half_width), one.count]
            for name, of in self.points().items()
            for radius, one in of.items()
        ]
        write_csv(["attack", "norm", "radius", "accuracy", "half_width", "images"], rows, directory / "robustness.csv")

    def _scores(self, seen: Prediction, batch: Any) -> dict[str, torch.Tensor]:
        return {"robust_accuracy": seen.label == self._samples(batch)[1], "reached": seen.reached}


def accuracy_against_radius(report: RobustnessReport) -> Figure:
    """A curve for each swept attack, a point for each other, from the clean accuracy at radius 0."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    threat = report.plan.threat
    draw_curves(axes, report.points(), ACCURACY)
    axes.axvline(threat.radius, color="black", linestyle=":", linewidth=1, label=f"trained radius {threat.radius:g}")
    clean = ACCURACY.factor * report.accuracy(NONE).mean
    axes.axhline(clean, color="black", linestyle="--", linewidth=1, label="clean")
    axes.set(xlabel=f"{threat.norm.name} radius", ylim=(-3, 103))
    axes.legend(fontsize=8)
    axes.set_title(f"Accuracy under attack, {len(report.scores)} test images", fontsize=10)
    return figure


def percent(share: float) -> str:
    """``43.5 %``."""
    return f"{100 * share:.1f} %"


class CleanAccuracy(Callback):
    """Logs ``val/clean_accuracy`` and ``test/clean_accuracy``, at the exact equilibria of all images.

    Args:
        classifier: whose accuracy it is.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._model = ExactClassifier(classifier)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self._log("val", pl_module, outputs["batch"])

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self._log("test", pl_module, outputs["batch"])

    def _log(self, stage: str, pl_module: LightningModule, batch: Any) -> None:
        correct = self._model.predict(batch.image).label == batch.label
        name = f"{stage}/clean_accuracy"
        pl_module.log(name, correct.float().mean(), batch_size=len(correct), on_epoch=True, sync_dist=True)
