"""Attacks do not take the confidence of a classifier for robustness."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from deqopt_tasks.cifar.classifier import Classifier
from deqopt_tasks.cifar.gradients import ExactClassifier
from deqopt_tasks.cifar.losses import SPREAD, cross_entropy, log_odds, rescaling
from deqopt_tasks.cifar.threat import Threat
from test_cifar_attacks import BOTH_NORMS, NAMES, RADII, attack_called
from torch.nn import functional as F

from cifar_models import Contractive, Linear, images_for
from deqopt.loop_settings import Norm

CONFIDENT: dict[str, Callable[[float], Classifier]] = {
    "linear": lambda confidence: Linear(confidence=confidence),
    "equilibrium": lambda confidence: Contractive(confidence=confidence, classes=4),
}


@BOTH_NORMS
@pytest.mark.parametrize("kind", CONFIDENT)
@pytest.mark.parametrize("key", NAMES)
def test_confidence_is_no_robustness(key: str, kind: str, norm: Norm) -> None:
    """Logits times 100 change no decision. Their cross-entropy and its gradient are zero in single precision, and an
    attack that follows them moves nothing. Smaller logits hide nothing either."""
    images, left = images_for(48, spread=0.5), {}
    labels = ExactClassifier(CONFIDENT[kind](1.0)).predict(images).label
    threat = Threat(norm, RADII[norm] if kind == "linear" else 2 * RADII[norm])
    for confidence in (0.01, 1.0, 10.0, 30.0, 100.0):
        classifier = CONFIDENT[kind](confidence)
        model = ExactClassifier(classifier)
        assert torch.equal(model.predict(images).label, labels)
        found = attack_called(key, classifier, norm).perturbed(model, images, labels, threat)
        left[confidence] = int((model.predict(found).label == labels).sum())
    assert 0 < left[1.0] < 44, "the radius is such that some images fall"
    assert len(set(left.values())) == 1, left


def test_what_the_attacks_maximise_has_the_steepest_ascent_of_cross_entropy() -> None:
    """Of the logits as the attack sees them; and keeps it where that of cross-entropy is exactly zero."""
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    label = torch.arange(6) % 5
    (slope,) = torch.autograd.grad(log_odds(logits, label).sum(), logits)
    (of_entropy,) = torch.autograd.grad(cross_entropy(logits, label).sum(), logits)
    torch.testing.assert_close(F.normalize(slope), F.normalize(of_entropy))
    torch.testing.assert_close(F.softplus(log_odds(logits, label)), cross_entropy(logits, label))
    sure = 300 * F.one_hot(label, 5).float() + logits.detach()
    sure.requires_grad_()
    assert (torch.autograd.grad(cross_entropy(sure, label).sum(), sure)[0] == 0).all()
    assert (torch.autograd.grad(log_odds(sure, label).sum(), sure)[0].abs().sum(1) > 1).all()


def test_rescaled_logits_decide_alike_at_one_confidence() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    for factor in (1e-3, 1.0, 1e3):
        found = rescaling(factor * logits) * factor * logits
        torch.testing.assert_close(found, rescaling(logits) * logits)
        torch.testing.assert_close(found.amax(1) - found.amin(1), torch.full((6,), SPREAD))
    assert rescaling(torch.full((2, 3), 7.0)).isfinite().all()
    assert not rescaling(logits.requires_grad_()).requires_grad
