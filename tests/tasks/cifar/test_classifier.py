"""The classifier and the losses of its logits, which do not take confidence for robustness."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from deqopt_tasks.cifar.classifier import Classifier
from deqopt_tasks.cifar.losses import SPREAD, Adversarial, Clean, Trades, cross_entropy, log_odds, rescaling
from torch.nn import functional as F


def classifier(**settings: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(**{"classes": 5, "image_channels": 3, "size": 16, "widths": [8, 4], "resolution": 8, **settings})


def test_the_unrolled_network_is_the_cell_applied_by_hand() -> None:
    equilibrium, network, image = classifier(), classifier(unroll=3), torch.rand(2, 3, 16, 16)
    assert [*map(torch.Tensor.size, network.parameters())] == [*map(torch.Tensor.size, equilibrium.parameters())]
    network.load_state_dict(equilibrium.state_dict())
    z = equilibrium.zeros(image)
    for _ in range(3):
        z = equilibrium.f(z, image)
    for start in (network.start(image), tuple(torch.randn_like(part) for part in z)):
        for found, expected in zip(network.f(start, image), z, strict=True):
            assert torch.equal(found, expected)


def test_normalisation_is_inside() -> None:
    """Black is -1 and white 1 for the network, and grey its zero."""
    one, image = classifier(), torch.rand(2, 3, 16, 16)
    seen: list[torch.Tensor] = []
    one.injection.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for shown in (torch.zeros_like(image), torch.full_like(image, 0.5), torch.ones_like(image), image):
        one.f(one.zeros(shown), shown)
    assert [part.unique().tolist() for part in seen[:3]] == [[-1], [0], [1]]
    torch.testing.assert_close(seen[3] / 2 + 0.5, image)


def test_no_image_sees_another() -> None:
    network, images = classifier().train(), torch.rand(4, 3, 16, 16)
    z = tuple(torch.randn(4, *shape) for shape in network.shapes)
    together = network.logits(network.f(z, images))
    alone = torch.cat([network.logits(network.f(tuple(p[i : i + 1] for p in z), images[i : i + 1])) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


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
