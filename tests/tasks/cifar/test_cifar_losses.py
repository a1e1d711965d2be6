"""Losses of logits: their values, and that attacks do not take the confidence of a classifier for robustness."""

from __future__ import annotations

import math

import pytest
import torch
from deqopt_tasks.cifar.losses import SPREAD, Adversarial, Clean, Trades, cross_entropy, log_odds, rescaling
from torch.nn import functional as F


def test_losses_of_given_probabilities() -> None:
    clean, attacked = torch.tensor([[1 / 4, 3 / 4]]).log() + 7, torch.tensor([[1 / 2, 1 / 2]]).log() - 2
    label = torch.tensor([1])
    divergence = math.log(1 / 2) / 4 + 3 * math.log(3 / 2) / 4
    expected = {
        Adversarial(): math.log(2),
        Adversarial(clean_weight=0.25): 3 / 4 * math.log(2) + 1 / 4 * math.log(4 / 3),
        Trades(beta=2.0): math.log(4 / 3) + 2 * divergence,
    }
    for loss, value in expected.items():
        assert loss.of(attacked, label, clean if loss.sees_clean else None).item() == pytest.approx(value)
        assert loss.attacks
    assert Clean().of(clean, label).item() == pytest.approx(math.log(4 / 3)) and not Clean().attacks


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
