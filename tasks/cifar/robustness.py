"""The callback that attacks test images and reports the accuracy under attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure

from deqopt.batch import size_of
from deqopt.callbacks.comparison import ComparisonReport
from deqopt.compare import Measure, Summary
from deqopt.compare.scores import cell
from deqopt.equilibrium import Equilibrium
from deqopt.figures import draw_curves, write_figure
from deqopt.tables import folded, write_csv

from .attacks import Attack
from .classifier import Classifier
from .evaluation import NONE, WORST, AttackPlan, Robustness, Samples
from .gradients import ExactClassifier, Prediction
from .threat import Threat

RADII = (0.0, 0.5, 1.0, 1.5, 2.0)
"""The radii of the sweep, in units of the radius of the threat."""
ACCURACY = Measure("robust_accuracy", "accuracy in %", factor=100, digits=1, bounds=(0, 1))
SECONDS = Measure("seconds", "s/image", digits=3, median=True)


class RobustnessReport(ComparisonReport):
    """In test: attacks the first test images; see `ComparisonReport`.

    The metric is ``robust_accuracy``; the methods are ``none`` (the same images without an attack), the attacks, and
    ``worst``: whether an image withstands every attack. ``test/sweep_<attack>_<radius>`` are logged too. The files are
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

    @property
    def robustness(self) -> Robustness:
        return Robustness(self.plan, self.scores)

    def summary(self) -> Summary:
        """The summary of the attacks at the radius of the threat."""
        names = [NONE, *(attack.name for attack in self.plan.attacks), WORST]
        sees = {attack.name: "logits" if attack.black_box else "gradients" for attack in self.plan.attacks}
        return Summary(self.scores.only(names), self.measures, self.noun, {"sees": sees})

    def title(self) -> str:
        return f"{super().title()}, {self.plan.threat}"

    def table(self) -> str:
        swept = {attack.name: self.robustness.sweep(attack) for attack in self.plan.swept}
        columns = [
            [f"{radius:g}", *(ACCURACY.shown(of[radius].mean) for of in swept.values())]
            for radius in sorted(self.plan.radii)
        ]
        sweep = ["Accuracy in % against radius", folded(["radius", *swept], columns)] if swept and columns else []
        return "\n".join([super().table(), *sweep])

    def notes(self) -> list[str]:
        return [f"Note: {note}" for note in self.robustness.notes()]

    def logged(self) -> dict[str, float]:
        sweep = {
            f"sweep_{attack.key}_{radius:g}": accuracy.mean
            for attack in self.plan.swept
            for radius, accuracy in self.robustness.sweep(attack).items()
        }
        return {**super().logged(), **sweep}

    def write(self, directory: Path) -> None:
        super().write(directory)
        write_figure(accuracy_against_radius(self.robustness), directory / "robustness.png")
        norm = self.plan.threat.norm.name
        rows = [
            [name, norm, radius, one.mean, cell(one.half_width), one.count]
            for name, of in self.robustness.points().items()
            for radius, one in of.items()
        ]
        write_csv(["attack", "norm", "radius", "accuracy", "half_width", "images"], rows, directory / "robustness.csv")

    def _scores(self, seen: Prediction, batch: Any) -> dict[str, torch.Tensor]:
        return {"robust_accuracy": seen.label == self._samples(batch)[1], "reached": seen.reached}


def accuracy_against_radius(robustness: Robustness) -> Figure:
    """A curve for each swept attack, from the clean accuracy at radius 0 on, and a point for each other attack."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    threat = robustness.plan.threat
    draw_curves(axes, robustness.points(), ACCURACY)
    axes.axvline(threat.radius, color="black", linestyle=":", linewidth=1, label=f"trained radius {threat.radius:g}")
    clean = ACCURACY.factor * robustness.accuracy(NONE).mean
    axes.axhline(clean, color="black", linestyle="--", linewidth=1, label="clean")
    axes.set(xlabel=f"{threat.norm.name} radius", ylim=(-3, 103))
    axes.legend(fontsize=8)
    axes.set_title(f"Accuracy under attack, {len(robustness.scores)} test images", fontsize=10)
    return figure
