"""Gradients of exactly solved classifiers, and attacks: what they may not do, and what they must find."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from deqopt_tasks.cifar.attacks import Attack
from deqopt_tasks.cifar.catalogue import AttackName, attacks_named
from deqopt_tasks.cifar.classifier import Classifier
from deqopt_tasks.cifar.gradients import ExactClassifier, GradientBy
from deqopt_tasks.cifar.threat import Threat
from deqopt_tasks.cifar.torch_attacks import PGD, AutoAttack, Square
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parametrize

from cifar_models import SIDE, Contractive, Linear, images_for, joint
from deqopt.errors import NonFiniteError, ProblemError
from deqopt.fixed_point import Anderson, Damped
from deqopt.loop_settings import Norm

NAMES = [
    "secant_tracking",
    "joint_anderson",
    "joint_broyden",
    "bilevel_pgd",
    "pgd",
    "pgd_unrolled",
    "apgd",
    "square",
    "autoattack",
]
OWN = NAMES[:4]
PRECISE = Anderson(max_nfe=300, tol=1e-13)
WAYS = pytest.mark.parametrize("way", list(GradientBy))
BOTH_NORMS = pytest.mark.parametrize("norm", list(Norm))
RADII = {Norm.L2: 0.2, Norm.LINF: 0.05}


def exact(classifier: Classifier, way: GradientBy = GradientBy.IMPLICIT, steps: int = 150) -> ExactClassifier:
    return ExactClassifier(classifier.double(), way, steps, PRECISE)


def real(unroll: int | None = None) -> Classifier:
    """A multiscale classifier with weight normalisation, as it is initialised."""
    return Classifier(classes=3, image_channels=1, size=8, widths=[4, 4], resolution=8, unroll=unroll)


def attack_called(key: str, classifier: Classifier, norm: Norm, classes: int = 4) -> Attack:
    """With budgets for tests."""
    found = attacks_named(list(AttackName), *joint(classifier, norm), classes, steps=20, evaluations=45, queries=80)
    (attack,) = [one for one in found if one.key == key]
    return replace(attack, steps=4, queries=10) if isinstance(attack, AutoAttack) else attack


@dataclass(frozen=True, kw_only=True)
class Cheat(Attack):
    """Returns ``scale image + shift``, or raises."""

    name: str = "cheat"
    scale: float = 1.0
    shift: float = 0.0
    error: bool = False

    def search(self, model: ExactClassifier, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        model.train()
        model.requires_grad_(True)
        torch.rand(3)
        if self.error:
            raise RuntimeError("out of memory")
        return self.scale * images + self.shift


# -- gradients --------------------------------------------------------------------------------------------------------


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
def test_values_are_those_of_the_equilibrium(way: GradientBy) -> None:
    classifier, images = Contractive().double(), images_for(3).double()
    z = Damped(max_nfe=200, tol=1e-14).solve(lambda z: classifier.f(z, images), classifier.start(images)).z  # type: ignore[arg-type]
    torch.testing.assert_close(exact(classifier, way)(images), classifier.logits(z).detach())  # type: ignore[arg-type]


@WAYS
def test_of_the_real_cell_with_its_weight_normalisation(way: GradientBy) -> None:
    """Against 150 plain updates differentiated by autograd."""
    classifier = real().double()
    images = images_for(2, side=8).double().requires_grad_()
    z = classifier.start(images)
    for _ in range(150):
        z = classifier.f(z, images)
    wanted = torch.autograd.grad(F.cross_entropy(classifier.logits(z), torch.tensor([0, 2])), images)[0]
    loss = F.cross_entropy(exact(classifier, way)(images), torch.tensor([0, 2]))
    torch.testing.assert_close(torch.autograd.grad(loss, images)[0], wanted, rtol=1e-6, atol=1e-9)


@WAYS
def test_of_an_unrolled_network_is_that_of_autograd(way: GradientBy) -> None:
    classifier = real(unroll=3).double()
    images = images_for(2, side=8).double().requires_grad_()
    plain, model = classifier.logits(classifier.f(classifier.start(images), images)), exact(classifier, way)
    torch.testing.assert_close(model(images), plain, rtol=1e-12, atol=1e-12)
    wanted, got = (torch.autograd.grad(logits.square().sum(), images)[0] for logits in (plain, model(images)))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_an_unrolled_network_is_not_unrolled_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every application of its f starts from zero, so that one has the whole gradient."""
    classifier = real(unroll=3)
    model = ExactClassifier(classifier, GradientBy.UNROLLED)
    logits = model(images_for(1, side=8).requires_grad_())
    calls: list[Tensor] = []
    plain = classifier.f
    monkeypatch.setattr(classifier, "f", lambda z, image: (calls.append(image), plain(z, image))[1])
    logits.sum().backward()
    assert len(calls) == 1


@WAYS
def test_parameters_get_no_gradient_and_the_image_only_one(way: GradientBy) -> None:
    model = ExactClassifier(real(), way)
    images = images_for(2, side=8).requires_grad_()
    logits = model(images)
    logits.sum().backward(retain_graph=True)
    assert images.grad is not None and images.grad.abs().max() > 0
    assert all(one.grad is None and one.requires_grad for one in model.parameters())
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    with pytest.raises(ProblemError, match="cannot be differentiated again"):
        gradient.sum().backward()


def test_nothing_is_kept_where_no_gradient_is_asked_for() -> None:
    model, images = ExactClassifier(real()), images_for(2, side=8)
    assert not model(images).requires_grad
    with torch.no_grad():
        assert not model(images.clone().requires_grad_()).requires_grad
    prediction = model.predict(images.clone().requires_grad_())
    assert torch.equal(prediction.label, model(images).argmax(1)) and prediction.reached.all()


def test_a_cache_of_weights_stays_good_for_training() -> None:
    """What is first asked for without a gradient would be cached without one."""
    classifier, images = real(unroll=3), images_for(2, side=8)

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


# -- all attacks ------------------------------------------------------------------------------------------------------


@BOTH_NORMS
@pytest.mark.parametrize("key", NAMES)
def test_an_attack_stays_within_its_threat_and_finds_something(key: str, norm: Norm) -> None:
    """On images near black and white, too, where the pixels' range is the tighter bound."""
    classifier = Linear()
    model, threat = ExactClassifier(classifier), Threat(norm, RADII[norm])
    images = images_for(24, spread=0.5)
    labels = model.predict(images).label
    found = attack_called(key, classifier, norm).perturbed(model, images, labels, threat)
    assert found.shape == images.shape and found.dtype == images.dtype and not found.requires_grad
    assert float(norm.of((found - images).flatten(1)).max()) <= threat.radius * (1 + 1e-5)
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    before, after = (F.cross_entropy(model(one), labels, reduction="none") for one in (images, found))
    assert (after >= before - 1e-6).all(), "no image became easier"
    fooled = model.predict(found).label != labels
    assert 4 <= fooled.sum() < 24, "the radius is such that some images fall"
    assert not torch.equal(found[fooled], images[fooled])


@BOTH_NORMS
@pytest.mark.parametrize("key", NAMES)
def test_at_a_radius_of_zero_images_come_back_bit_by_bit(key: str, norm: Norm) -> None:
    classifier, images = Linear(), images_for(3)
    found = attack_called(key, classifier, norm).perturbed(
        ExactClassifier(classifier), images, torch.tensor([0, 1, 2]), Threat(norm, 0.0)
    )
    assert torch.equal(found, images) and found is not images


@BOTH_NORMS
@pytest.mark.parametrize("key", NAMES)
def test_random_states_are_left_alone_and_results_repeat(key: str, norm: Norm) -> None:
    classifier, images = Linear(), images_for(5)
    model = ExactClassifier(classifier)
    labels, attack = model.predict(images).label, attack_called(key, classifier, norm)
    first = attack.perturbed(model, images, labels, Threat(norm, RADII[norm]))
    torch.manual_seed(11)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[union-attr, index]
    again = attack.perturbed(model, images, labels, Threat(norm, RADII[norm]))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]  # type: ignore[union-attr, index]
    assert torch.equal(first, again)


@pytest.mark.parametrize("key", ["pgd", "apgd", "square"])
def test_another_seed_is_another_search(key: str) -> None:
    classifier, images = Linear(), images_for(8)
    model, attack = ExactClassifier(classifier), attack_called(key, classifier, Norm.L2)
    labels = model.predict(images).label
    found = [replace(attack, seed=seed).perturbed(model, images, labels, Threat(Norm.L2, 0.6)) for seed in (0, 1)]
    assert not torch.equal(*found)


@pytest.mark.parametrize("key", NAMES)
def test_wrongly_classified_images_stay_as_they_are(key: str) -> None:
    """So no attack sees a batch in which nothing is left to find; and one image is a batch."""
    classifier, images = Linear(), images_for(4)
    model, attack = ExactClassifier(classifier), attack_called(key, classifier, Norm.L2)
    right = model.predict(images).label
    wrong = (right + 1) % 4
    threat = Threat(Norm.L2, 3.0)
    assert torch.equal(attack.perturbed(model, images, wrong, threat), images)
    one_right = torch.where(torch.arange(4) == 2, right, wrong).to(torch.int32)
    moved = (attack.perturbed(model, images, one_right, threat) != images).flatten(1).any(1)
    assert moved.tolist() == [False, False, True, False]


@pytest.mark.parametrize("key", NAMES)
def test_an_attack_differentiates_under_no_grad_and_leaves_the_model(key: str) -> None:
    classifier, images = real(), images_for(2, side=8)
    model = ExactClassifier(classifier).train()
    classifier.linear.eval()
    classifier.linear.requires_grad_(False)
    labels = model.predict(images).label
    modes = [part.training for part in model.modules()]
    wanted = [one.requires_grad for one in model.parameters()]
    attack = attack_called(key, classifier, Norm.LINF, classes=3)
    with torch.no_grad():
        found = attack.perturbed(model, images, labels, Threat(Norm.LINF, 0.3))
        assert not torch.is_grad_enabled()
    assert not torch.equal(found, images)
    assert [part.training for part in model.modules()] == modes
    assert [one.requires_grad for one in model.parameters()] == wanted
    assert all(one.grad is None for one in model.parameters())


def test_a_failing_search_leaves_the_model_and_the_random_state() -> None:
    model, images = ExactClassifier(real()).eval(), images_for(2, side=8)
    model.classifier.cell.train()
    model.classifier.linear.requires_grad_(False)
    modes, state = [part.training for part in model.modules()], torch.get_rng_state()
    wanted = [one.requires_grad for one in model.parameters()]
    with pytest.raises(RuntimeError, match="out of memory"):
        Cheat(error=True).perturbed(model, images, model.predict(images).label, Threat(Norm.L2, 1.0))
    assert [part.training for part in model.modules()] == modes
    assert [one.requires_grad for one in model.parameters()] == wanted
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_ensemble_takes_any_number_of_classes(classes: int) -> None:
    """Targeted APGD needs four: its loss reads the fourth largest logit."""
    classifier, images = Linear(classes), images_for(12)
    model = ExactClassifier(classifier)
    attack, labels = AutoAttack(classes=classes, steps=3, queries=5), model.predict(images).label
    fooled = model.predict(attack.perturbed(model, images, labels, Threat(Norm.L2, 0.1))).label != labels
    assert 0 < fooled.sum() < 12, "all parts of the ensemble had something to do"


@pytest.mark.parametrize("key", NAMES)
def test_a_model_in_double_precision_is_attacked(key: str) -> None:
    """torchattacks mixes single and double precision where images are double."""
    classifier = Linear().double()
    model, images = ExactClassifier(classifier), images_for(16).double()
    labels = model.predict(images).label
    found = attack_called(key, classifier, Norm.L2).perturbed(model, images, labels, Threat(Norm.L2, 0.1))
    assert found.dtype == torch.float64
    assert 0 < (model.predict(found).label != labels).sum() < 16


@BOTH_NORMS
@pytest.mark.parametrize("key", OWN)
def test_samples_of_our_own_attacks_do_not_touch_each_other(key: str, norm: Norm) -> None:
    classifier = Contractive()
    model, images = exact(classifier), images_for(5).double()
    attack, labels = attack_called(key, classifier, norm), model.predict(images).label
    threat = Threat(norm, RADII[norm])
    together = attack.perturbed(model, images, labels, threat)
    alone = attack.perturbed(model, images[3:4], labels[3:4], threat)
    torch.testing.assert_close(together[3:4], alone, rtol=0, atol=1e-9)


# -- closed forms -----------------------------------------------------------------------------------------------------


@BOTH_NORMS
@pytest.mark.parametrize("key", [*OWN, "pgd", "pgd_unrolled"])
def test_the_margin_of_two_linear_classes_is_the_closed_form(key: str, norm: Norm) -> None:
    """The least margin within the ball is ``m - radius |w|_dual`` where no pixel reaches its bound."""
    classifier = Linear(classes=2)
    model, images = ExactClassifier(classifier), images_for(6)
    with torch.no_grad():
        logits = model(images)
        labels = logits.argmax(1)
        w = 6 * (classifier.weight[0] - classifier.weight[1])  # logits are 3 W (2 image - 1)
        margin = (logits[:, 0] - logits[:, 1]).abs()
        dual = float(w.norm() if norm is Norm.L2 else w.abs().sum())
        threat = Threat(norm, 0.3 if norm is Norm.L2 else 0.05)
        attack = attack_called(key, classifier, norm, classes=2)
        if isinstance(attack, PGD):
            attack = replace(attack, step=10.0)
        found = model(attack.perturbed(model, images, labels, threat))
        left = (found[:, 0] - found[:, 1]) * torch.where(labels == 0, 1.0, -1.0)
    # By gradients of Euclidean direction a corner of the cube is reached only where all entries are large enough.
    slack = 1e-3 if norm is Norm.L2 or key in ("pgd", "pgd_unrolled", "bilevel_pgd") else 0.05
    torch.testing.assert_close(left, margin - threat.radius * dual, rtol=0, atol=slack * threat.radius * dual)


@pytest.mark.parametrize("key", [*OWN, "pgd"])
def test_on_an_equilibrium_attacks_find_what_a_fine_ascent_finds(key: str) -> None:
    classifier = Contractive().double()
    model, threat = ExactClassifier(classifier), Threat(Norm.L2, 0.3)
    images = images_for(6).double()
    labels = model.predict(images).label
    x = torch.zeros_like(images)
    for _ in range(30):
        x.requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(images + x), labels, reduction="sum"), x)
        x = (x + 0.1 * g / g.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)).detach()
        x = x * (threat.radius / x.flatten(1).norm(dim=1).clamp_min(threat.radius)).reshape(-1, 1, 1, 1)
    found = attack_called(key, classifier, Norm.L2).perturbed(model, images, labels, threat)
    clean, reference, reached = (
        F.cross_entropy(model(one), labels, reduction="none").mean() for one in (images, images + x, found)
    )
    assert reached > clean + 0.97 * (reference - clean)


# -- complaints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cheat, error, message",
    [
        (Cheat(shift=0.05), ProblemError, "cheat left the set it was given, L2 radius 0.1: a perturbation is 0.3 long"),
        (Cheat(scale=float("nan")), NonFiniteError, "cheat returned NaN or infinite pixels for 2 of 2 images"),
    ],
    ids=["too long", "NaN"],
)
def test_an_attack_that_cheats_is_caught(cheat: Cheat, error: type[Exception], message: str) -> None:
    model, images = ExactClassifier(Linear()), images_for(2)
    with pytest.raises(error, match=message):
        cheat.perturbed(model, images, model.predict(images).label, Threat(Norm.L2, 0.1))


def test_pixels_beyond_their_range_are_caught() -> None:
    model, images = ExactClassifier(Linear()), images_for(2, spread=0.5)
    with pytest.raises(ProblemError, match=r"left the valid pixels, 0 to 1: its images go from 0\.\d+ to 1\.0"):
        Cheat(shift=0.05).perturbed(model, images, model.predict(images).label, Threat(Norm.LINF, 0.1))


def test_rounding_is_not_cheating_and_is_taken_away() -> None:
    model, images = ExactClassifier(Linear()), images_for(2)
    found = Cheat(shift=0.1 * (1 + 5e-5)).perturbed(model, images, model.predict(images).label, Threat(Norm.LINF, 0.1))
    assert float((found.double() - images.double()).abs().max()) < 0.1 * (1 + 1e-6)


@pytest.mark.parametrize("key", NAMES)
def test_what_is_not_installed_is_named_and_our_own_attacks_go_on(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    classifier, images = Linear(), images_for(2)
    model, attack = ExactClassifier(classifier), attack_called(key, classifier, Norm.L2)
    labels, threat = model.predict(images).label, Threat(Norm.L2, 0.6)
    if key in OWN:
        attack.require()
        assert not torch.equal(attack.perturbed(model, images, labels, threat), images)
        return
    message = rf"the attack {attack.name} needs the extra adversarial: pip install 'deqopt\[adversarial\]'"
    with pytest.raises(ProblemError, match=message):
        attack.require()
    with pytest.raises(ProblemError, match=message):
        attack.perturbed(model, images, labels, threat)


def test_names_give_attacks_in_their_order_and_once() -> None:
    classifier = Linear()
    wanted = [AttackName.SQUARE, AttackName.PGD, AttackName.SQUARE]
    assert [one.key for one in attacks_named(wanted, *joint(classifier, Norm.L2), 4)] == ["square", "pgd"]
    everything = attacks_named(list(AttackName), *joint(classifier, Norm.L2), 4)
    assert [one.key for one in everything] == NAMES
    assert [one.key for one in everything if one.black_box] == ["square"]


@pytest.mark.parametrize("attack", [Square(), AutoAttack(classes=4)], ids=["square", "autoattack"])
def test_images_too_small_for_the_squares_are_refused(attack: Attack) -> None:
    model, images = ExactClassifier(Linear(side=4)), images_for(2, side=4)
    with pytest.raises(
        ProblemError, match=f"{attack.name} in L2 needs images of 5x5 or larger, but these have a side of 4"
    ):
        attack.perturbed(model, images, model.predict(images).label, Threat(Norm.L2, 0.5))


def test_inference_mode_is_refused_with_a_way_out() -> None:
    model, images = ExactClassifier(Linear()), images_for(2)
    with torch.inference_mode(), pytest.raises(ProblemError, match=r"Trainer\(inference_mode=False\)"):
        PGD().perturbed(model, images, torch.zeros(2), Threat(Norm.L2, 0.5))


def test_a_negative_radius_is_refused() -> None:
    with pytest.raises(ProblemError, match="radius must be 0 or larger, got -1"):
        Threat(Norm.L2, -1.0)


def test_the_reach_is_the_length_of_the_corner() -> None:
    images: Any = images_for(2)
    assert Threat(Norm.L2, 0.5).reach(images) == 0.5
    corner = torch.full_like(images, 0.5)
    assert Threat(Norm.LINF, 0.5).reach(images) == pytest.approx(float(corner[0].norm())) == 0.5 * SIDE
