"""Logits and gradients of exactly solved classifiers."""

from __future__ import annotations

import pytest
import torch
from deqopt_tasks.cifar.classifier import Classifier
from deqopt_tasks.cifar.gradients import ExactClassifier, GradientBy
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parametrize

from cifar_models import PRECISE, Contractive, images_for, multiscale
from deqopt.errors import ProblemError
from deqopt.fixed_point import Damped

WAYS = pytest.mark.parametrize("way", list(GradientBy))


def exact(classifier: Classifier, way: GradientBy = GradientBy.IMPLICIT, steps: int = 150) -> ExactClassifier:
    return ExactClassifier(classifier.double(), way, steps, PRECISE)


@WAYS
@pytest.mark.parametrize("gain", [0.0, 0.3])
def test_gradients_are_those_of_finite_differences(way: GradientBy, gain: float) -> None:
    images = images_for(2, side=3).double().requires_grad_()
    assert torch.autograd.gradcheck(exact(Contractive(gain, side=3), way), images)


def test_few_unrolled_steps_give_another_gradient_at_the_same_value() -> None:
    """So UNROLLED is what it says, and not the implicit gradient by another name."""
    images = images_for(3).double().requires_grad_()
    short, long, implicit = (
        exact(Contractive(), way, steps)
        for way, steps in ((GradientBy.UNROLLED, 2), (GradientBy.UNROLLED, 150), (GradientBy.IMPLICIT, 0))
    )
    values = [model(images) for model in (short, long, implicit)]
    assert torch.equal(values[0], values[2]) and torch.equal(values[1], values[2])
    gradients = [torch.autograd.grad(value.square().sum(), images)[0] for value in values]
    torch.testing.assert_close(gradients[1], gradients[2], rtol=1e-8, atol=1e-10)
    assert (gradients[0] - gradients[2]).norm() > 0.02 * gradients[2].norm()


@WAYS
def test_of_the_real_cell_with_its_weight_normalisation(way: GradientBy) -> None:
    """Against 150 plain updates differentiated by autograd."""
    classifier = multiscale().double()
    images = images_for(2, side=8).double().requires_grad_()
    z = classifier.start(images)
    for _ in range(150):
        z = classifier.f(z, images)
    plain, found = classifier.logits(z), exact(classifier, way)(images)
    torch.testing.assert_close(found, plain, rtol=1e-8, atol=1e-9)
    wanted, got = (torch.autograd.grad(F.cross_entropy(one, torch.tensor([0, 2])), images)[0] for one in (plain, found))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-9)


@WAYS
def test_of_an_unrolled_network_is_that_of_autograd(way: GradientBy) -> None:
    classifier = multiscale(unroll=3).double()
    images = images_for(2, side=8).double().requires_grad_()
    plain, model = classifier.logits(classifier.f(classifier.start(images), images)), exact(classifier, way)
    torch.testing.assert_close(model(images), plain, rtol=1e-12, atol=1e-12)
    wanted, got = (torch.autograd.grad(logits.square().sum(), images)[0] for logits in (plain, model(images)))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_an_unrolled_network_is_not_unrolled_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every application of its f starts from zero, so that one has the whole gradient."""
    classifier = multiscale(unroll=3)
    model = ExactClassifier(classifier, GradientBy.UNROLLED)
    logits = model(images_for(1, side=8).requires_grad_())
    calls: list[Tensor] = []
    plain = classifier.f
    monkeypatch.setattr(classifier, "f", lambda z, image: (calls.append(image), plain(z, image))[1])
    logits.sum().backward()
    assert len(calls) == 1


@WAYS
def test_parameters_get_no_gradient_and_the_image_only_one(way: GradientBy) -> None:
    model = ExactClassifier(multiscale(), way)
    images = images_for(2, side=8).requires_grad_()
    logits = model(images)
    logits.sum().backward(retain_graph=True)
    assert images.grad is not None and images.grad.abs().max() > 0
    assert all(one.grad is None and one.requires_grad for one in model.parameters())
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    with pytest.raises(ProblemError, match="cannot be differentiated again"):
        gradient.sum().backward()


def test_nothing_is_kept_where_no_gradient_is_asked_for() -> None:
    model, images = ExactClassifier(multiscale()), images_for(2, side=8)
    assert not model(images).requires_grad
    with torch.no_grad():
        assert not model(images.clone().requires_grad_()).requires_grad
    prediction = model.predict(images.clone().requires_grad_())
    assert torch.equal(prediction.label, model(images).argmax(1)) and prediction.reached.all()


def test_a_cache_of_weights_stays_good_for_training() -> None:
    """What is first asked for without a gradient would be cached without one."""
    classifier, images = multiscale(unroll=3), images_for(2, side=8)

    def trained() -> list[Tensor | None]:
        classifier.zero_grad()
        classifier.logits(classifier.f(classifier.start(images), images)).square().sum().backward()
        return [one.grad for one in classifier.parameters()]

    wanted = trained()
    with parametrize.cached():
        ExactClassifier(classifier).predict(images)
        got = trained()
    assert all(one is not None for one in wanted)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_another_precision_is_that_of_the_model_inside() -> None:
    model, images = exact(Contractive()), images_for(3)
    assert model(images).dtype == torch.float32
    torch.testing.assert_close(model(images), model(images.double()).float())


@pytest.mark.parametrize("gain, lost", [(0.3, 0), (3.0, 4)])
def test_what_is_not_reached_is_counted(gain: float, lost: int) -> None:
    classifier = Contractive(gain, bounded=False)
    model = ExactClassifier(classifier, solver=Damped(max_nfe=30, tol=1e-5))
    images = images_for(4).requires_grad_()
    assert int((~model.predict(images).reached).sum()) == lost
    model.by(GradientBy.IMPLICIT)(images).sum().backward()
    assert (model.gradients.total, model.gradients.unreached) == (4, lost)
