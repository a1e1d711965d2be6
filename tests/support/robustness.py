"""Attacks whose results are known, and what reports find with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from deqopt_tasks.cifar.attacks import Attack
from deqopt_tasks.cifar.classifier import Classifier
from deqopt_tasks.cifar.evaluation import AttackPlan
from deqopt_tasks.cifar.gradients import ExactClassifier
from deqopt_tasks.cifar.robustness import RobustnessReport
from deqopt_tasks.cifar.threat import Threat
from lightning.pytorch import Trainer
from torch import Tensor

from cifar_models import Linear, images_for
from deqopt.compare import Scores
from deqopt.data import ImageBatch
from deqopt.fixed_point import FixedPointSolver
from deqopt.loop_settings import Norm

L2 = Threat(Norm.L2, 0.2)
LINF = Threat(Norm.LINF, 0.05)


@dataclass(frozen=True, kw_only=True)
class Whiten(Attack):
    """Adds ``share`` of the radius to every pixel of the images whose mean is on one side of 0.5."""

    share: float
    above: bool

    def search(self, model: ExactClassifier, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        chosen = (images.mean((1, 2, 3), keepdim=True) > 0.5) == self.above
        return images + chosen * self.share * threat.radius


def report(classifier: Classifier, plan: AttackPlan, **settings: Any) -> RobustnessReport:
    return RobustnessReport(
        classifier, lambda batch: batch[:2], plan.threat, plan.attacks, plan.swept, plan.radii, **settings
    )


def evaluated(
    plan: AttackPlan,
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    batch: int = 100,
    solver: FixedPointSolver | None = None,
) -> RobustnessReport:
    """What a report finds, without a test around it."""
    told = report(classifier, plan)
    told._model = ExactClassifier(classifier, solver=solver)
    parts = []
    for part in zip(*(whole.split(batch) for whole in (images, labels, torch.arange(len(images)))), strict=True):
        answers = {name: method(ImageBatch(*part)) for name, method in told.methods(Trainer(logger=False)).items()}
        parts.append(told.scored(answers, dict.fromkeys(answers, 0.0), cast(Any, None), ImageBatch(*part)))
    told.scores = Scores.joined(parts)
    return told


def shares(found: RobustnessReport) -> dict[str, float]:
    return {name: found.accuracy(name).mean for name in found.scores.values}


def with_own_labels(classifier: Classifier, count: int = 24) -> tuple[Tensor, Tensor]:
    images = images_for(count, spread=0.5)
    return images, ExactClassifier(classifier).predict(images).label


def found_by_hand(plan: AttackPlan, right: dict[str, int], of: int = 8) -> RobustnessReport:
    """So many of the images are correctly classified after each attack, with nothing to complain of."""
    kept = {
        name: {"robust_accuracy": [float(k < count) for k in range(of)], "reached": [1.0] * of}
        for name, count in right.items()
    }
    told = report(Linear(), plan)
    told.scores = Scores(range(of), kept, {"gradients": [0] * of, "gradients_unreached": [0] * of})
    return told
