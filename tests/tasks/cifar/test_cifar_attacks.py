"""Attacks: what they may not do, and what they must find."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from deqopt_tasks.cifar.attacks import Attack
from deqopt_tasks.cifar.catalogue import AttackName, attacks_named
from deqopt_tasks.cifar.classifier import Classifier
from deqopt_tasks.cifar.gradients import ExactClassifier
from deqopt_tasks.cifar.threat import Threat
from deqopt_tasks.cifar.torch_attacks import PGD, AutoAttack, Square
from torch import Tensor
from torch.nn import functional as F

from cifar_models import PRECISE, SIDE, Contractive, Linear, images_for, joint, multiscale
from deqopt.errors import NonFiniteError, ProblemError
from deqopt.loop_settings import Norm

OWN = ["secant_tracking", "joint_anderson", "joint_broyden", "bilevel_pgd"]
NAMES = [*OWN, "pgd", "pgd_unrolled", "apgd", "square", "autoattack"]
BOTH_NORMS = pytest.mark.parametrize("norm", list(Norm))
EVERY_ATTACK = pytest.mark.parametrize("key", NAMES)
RADII = {Norm.L2: 0.2, Norm.LINF: 0.05}


def attack_called(key: str, classifier: Classifier, norm: Norm, classes: int = 4) -> Attack:
    """With budgets for tests."""
    found = attacks_named(list(AttackName), *joint(classifier, norm), classes, steps=20, evaluations=45, queries=80)
    (attack,) = [one for one in found if one.key == key]
    return replace(attack, steps=4, queries=10) if isinstance(attack, AutoAttack) else attack


class Target:
    """A classifier, and images with the classes that it sees in them."""

    def __init__(self, classifier: Classifier, images: Tensor, classes: int = 4) -> None:
        self.classifier, self.images, self.classes = classifier, images, classes
        self.model = ExactClassifier(classifier)
        self.labels = self.model.predict(images).label

    def attack(self, key: str, norm: Norm = Norm.L2) -> Attack:
        return attack_called(key, self.classifier, norm, self.classes)

    def perturbed(
        self, attack: str | Attack, norm: Norm = Norm.L2, radius: float | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """The images after an attack; by default with RADII, and with their own labels."""
        found = self.attack(attack, norm) if isinstance(attack, str) else attack
        threat = Threat(norm, RADII[norm] if radius is None else radius)
        return found.perturbed(self.model, self.images, self.labels if labels is None else labels, threat)

    def fooled(self, images: Tensor) -> Tensor:
        return self.model.predict(images).label != self.labels

    def losses(self, images: Tensor) -> Tensor:
        return F.cross_entropy(self.model(images), self.labels, reduction="none")


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


@BOTH_NORMS
@EVERY_ATTACK
def test_an_attack_stays_within_its_threat_and_finds_something(key: str, norm: Norm) -> None:
    """On images near black and white, too, where the pixels' range is the tighter bound."""
    target = Target(Linear(), images_for(24, spread=0.5))
    images, found = target.images, target.perturbed(key, norm)
    assert found.shape == images.shape and found.dtype == images.dtype and not found.requires_grad
    assert float(norm.of((found - images).flatten(1)).max()) <= RADII[norm] * (1 + 1e-5)
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    assert (target.losses(found) >= target.losses(images) - 1e-6).all(), "no image became easier"
    fooled = target.fooled(found)
    assert 4 <= fooled.sum() < 24, "the radius is such that some images fall"
    assert not torch.equal(found[fooled], images[fooled])


@BOTH_NORMS
@EVERY_ATTACK
def test_at_a_radius_of_zero_images_come_back_bit_by_bit(key: str, norm: Norm) -> None:
    target = Target(Linear(), images_for(3))
    found = target.perturbed(key, norm, 0.0, labels=torch.tensor([0, 1, 2]))
    assert torch.equal(found, target.images) and found is not target.images


@BOTH_NORMS
@EVERY_ATTACK
def test_random_states_are_left_alone_and_results_repeat(key: str, norm: Norm) -> None:
    target = Target(Linear(), images_for(5))
    first = target.perturbed(key, norm)
    torch.manual_seed(11)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[union-attr, index]
    again = target.perturbed(key, norm)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]  # type: ignore[union-attr, index]
    assert torch.equal(first, again)


@pytest.mark.parametrize("key", ["pgd", "apgd", "square"])
def test_another_seed_is_another_search(key: str) -> None:
    target = Target(Linear(), images_for(8))
    found = [target.perturbed(replace(target.attack(key), seed=seed), radius=0.6) for seed in (0, 1)]
    assert not torch.equal(*found)


@EVERY_ATTACK
def test_wrongly_classified_images_stay_as_they_are(key: str) -> None:
    """So no attack sees a batch in which nothing is left to find; and one image is a batch."""
    target = Target(Linear(), images_for(4))
    wrong = (target.labels + 1) % 4
    assert torch.equal(target.perturbed(key, radius=3.0, labels=wrong), target.images)
    one_right = torch.where(torch.arange(4) == 2, target.labels, wrong).to(torch.int32)
    moved = (target.perturbed(key, radius=3.0, labels=one_right) != target.images).flatten(1).any(1)
    assert moved.tolist() == [False, False, True, False]


def traits(model: ExactClassifier) -> tuple[list[bool], list[bool]]:
    """Which parts are in training mode, and which parameters require a gradient."""
    return [part.training for part in model.modules()], [one.requires_grad for one in model.parameters()]


@EVERY_ATTACK
def test_an_attack_differentiates_under_no_grad_and_leaves_the_model(key: str) -> None:
    target = Target(multiscale(), images_for(2, side=8), classes=3)
    target.model.train()
    target.classifier.linear.eval().requires_grad_(False)
    before = traits(target.model)
    with torch.no_grad():
        found = target.perturbed(key, Norm.LINF, 0.3)
        assert not torch.is_grad_enabled()
    assert not torch.equal(found, target.images)
    assert traits(target.model) == before and all(one.grad is None for one in target.model.parameters())


def test_a_failing_search_leaves_the_model_and_the_random_state() -> None:
    target = Target(multiscale(), images_for(2, side=8))
    target.model.eval()
    target.classifier.cell.train()
    target.classifier.linear.requires_grad_(False)
    before, state = traits(target.model), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="out of memory"):
        target.perturbed(Cheat(error=True), radius=1.0)
    assert traits(target.model) == before and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_ensemble_takes_any_number_of_classes(classes: int) -> None:
    """Targeted APGD needs four: its loss reads the fourth largest logit."""
    target = Target(Linear(classes), images_for(12))
    fooled = target.fooled(target.perturbed(AutoAttack(classes=classes, steps=3, queries=5), radius=0.1))
    assert 0 < fooled.sum() < 12, "all parts of the ensemble had something to do"


@EVERY_ATTACK
def test_a_model_in_double_precision_is_attacked(key: str) -> None:
    """torchattacks mixes single and double precision where images are double."""
    target = Target(Linear().double(), images_for(16).double())
    found = target.perturbed(key, radius=0.1)
    assert found.dtype == torch.float64 and 0 < target.fooled(found).sum() < 16


@BOTH_NORMS
@pytest.mark.parametrize("key", OWN)
def test_samples_of_our_own_attacks_do_not_touch_each_other(key: str, norm: Norm) -> None:
    together = Target(Contractive().double(), images_for(5).double())
    alone = Target(together.classifier, together.images[3:4])
    for target in (together, alone):
        target.model = ExactClassifier(target.classifier, solver=PRECISE)
    found, expected = (target.perturbed(key, norm) for target in (together, alone))
    torch.testing.assert_close(found[3:4], expected, rtol=0, atol=1e-9)


CONFIDENT: dict[str, Callable[[float], Classifier]] = {
    "linear": lambda confidence: Linear(confidence=confidence),
    "equilibrium": lambda confidence: Contractive(confidence=confidence, classes=4),
}


@BOTH_NORMS
@pytest.mark.parametrize("kind", CONFIDENT)
@EVERY_ATTACK
def test_confidence_is_no_robustness(key: str, kind: str, norm: Norm) -> None:
    """Logits times 100 change no decision. Their cross-entropy and its gradient are zero in single precision, and an
    attack that follows them moves nothing. Smaller logits hide nothing either."""
    images, left = images_for(48, spread=0.5), {}
    labels = Target(CONFIDENT[kind](1.0), images).labels
    for confidence in (0.01, 1.0, 10.0, 30.0, 100.0):
        target = Target(CONFIDENT[kind](confidence), images)
        assert torch.equal(target.labels, labels)
        found = target.perturbed(key, norm, RADII[norm] if kind == "linear" else 2 * RADII[norm])
        left[confidence] = int((~target.fooled(found)).sum())
    assert 0 < left[1.0] < 44, "the radius is such that some images fall"
    assert len(set(left.values())) == 1, left


@BOTH_NORMS
@pytest.mark.parametrize("key", [*OWN, "pgd", "pgd_unrolled"])
def test_the_margin_of_two_linear_classes_is_the_closed_form(key: str, norm: Norm) -> None:
    """The least margin within the ball is ``m - radius |w|_dual`` where no pixel reaches its bound."""
    classifier, radius = Linear(classes=2), 0.3 if norm is Norm.L2 else 0.05
    target = Target(classifier, images_for(6), classes=2)
    with torch.no_grad():
        logits = target.model(target.images)
        w = 6 * (classifier.weight[0] - classifier.weight[1])  # logits are 3 W (2 image - 1)
        margin = (logits[:, 0] - logits[:, 1]).abs()
        dual = float(w.norm() if norm is Norm.L2 else w.abs().sum())
        attack = target.attack(key, norm)
        if isinstance(attack, PGD):
            attack = replace(attack, step=10.0)
        found = target.model(target.perturbed(attack, norm, radius))
        left = (found[:, 0] - found[:, 1]) * torch.where(target.labels == 0, 1.0, -1.0)
    # By gradients of Euclidean direction a corner of the cube is reached only where all entries are large enough.
    slack = 1e-3 if norm is Norm.L2 or key in ("pgd", "pgd_unrolled", "bilevel_pgd") else 0.05
    torch.testing.assert_close(left, margin - radius * dual, rtol=0, atol=slack * radius * dual)


@pytest.mark.parametrize("key", [*OWN, "pgd"])
def test_on_an_equilibrium_attacks_find_what_a_fine_ascent_finds(key: str) -> None:
    radius, target = 0.3, Target(Contractive().double(), images_for(6).double())
    x = torch.zeros_like(target.images)
    for _ in range(30):
        x.requires_grad_()
        (g,) = torch.autograd.grad(target.losses(target.images + x).sum(), x)
        x = (x + 0.1 * g / g.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)).detach()
        x = x * (radius / x.flatten(1).norm(dim=1).clamp_min(radius)).reshape(-1, 1, 1, 1)
    found = target.perturbed(key, radius=radius)
    clean, reference, reached = (target.losses(one).mean() for one in (target.images, target.images + x, found))
    assert reached > clean + 0.97 * (reference - clean)


TOO_LONG = r"cheat left the set it was given, L2 radius 0\.1: a perturbation is 0\.3 long"
DISHONEST: dict[str, tuple[Cheat, Norm, float, type[Exception], str]] = {
    "too long": (Cheat(shift=0.05), Norm.L2, 0.3, ProblemError, TOO_LONG),
    "NaN": (Cheat(scale=float("nan")), Norm.L2, 0.3, NonFiniteError, "cheat returned NaN .* pixels for 2 of 2 images"),
    "pixels": (Cheat(shift=0.05), Norm.LINF, 0.5, ProblemError, r"the valid pixels, 0 to 1: .* from 0\.\d+ to 1\.0"),
}


@pytest.mark.parametrize("case", DISHONEST)
def test_an_attack_that_cheats_is_caught(case: str) -> None:
    cheat, norm, spread, error, message = DISHONEST[case]
    with pytest.raises(error, match=message):
        Target(Linear(), images_for(2, spread=spread)).perturbed(cheat, norm, 0.1)


def test_rounding_is_not_cheating_and_is_taken_away() -> None:
    target = Target(Linear(), images_for(2))
    found = target.perturbed(Cheat(shift=0.1 * (1 + 5e-5)), Norm.LINF, 0.1)
    assert float((found.double() - target.images.double()).abs().max()) < 0.1 * (1 + 1e-6)


@EVERY_ATTACK
def test_what_is_not_installed_is_named_and_our_own_attacks_go_on(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    target = Target(Linear(), images_for(2))
    attack = target.attack(key)
    if key in OWN:
        attack.require()
        assert not torch.equal(target.perturbed(attack, radius=0.6), target.images)
        return
    message = rf"the attack {attack.name} needs the extra adversarial: pip install 'deqopt\[adversarial\]'"
    for action in (attack.require, lambda: target.perturbed(attack, radius=0.6)):
        with pytest.raises(ProblemError, match=message):
            action()


def test_names_give_attacks_in_their_order_and_once() -> None:
    problem = joint(Linear(), Norm.L2)
    wanted = [AttackName.SQUARE, AttackName.PGD, AttackName.SQUARE]
    assert [one.key for one in attacks_named(wanted, *problem, 4)] == ["square", "pgd"]
    everything = attacks_named(list(AttackName), *problem, 4)
    assert [one.key for one in everything] == NAMES
    assert [one.key for one in everything if one.black_box] == ["square"]


@pytest.mark.parametrize("attack", [Square(), AutoAttack(classes=4)], ids=["square", "autoattack"])
def test_images_too_small_for_the_squares_are_refused(attack: Attack) -> None:
    message = f"{attack.name} in L2 needs images of 5x5 or larger, but these have a side of 4"
    with pytest.raises(ProblemError, match=message):
        Target(Linear(side=4), images_for(2, side=4)).perturbed(attack, radius=0.5)


def test_inference_mode_is_refused_with_a_way_out() -> None:
    target = Target(Linear(), images_for(2))
    with torch.inference_mode(), pytest.raises(ProblemError, match=r"Trainer\(inference_mode=False\)"):
        target.perturbed(PGD())


def test_the_reach_is_the_length_of_the_corner() -> None:
    images = images_for(2)
    assert Threat(Norm.L2, 0.5).reach(images) == 0.5
    corner = torch.full_like(images, 0.5)
    assert Threat(Norm.LINF, 0.5).reach(images) == pytest.approx(float(corner[0].norm())) == 0.5 * SIDE
