"""Robust accuracy: what is counted, and what is said about it."""

from __future__ import annotations

import pytest
import torch
from deqopt_tasks.cifar.attacks import Attack
from deqopt_tasks.cifar.catalogue import joint_attacks
from deqopt_tasks.cifar.classifier import Classifier
from deqopt_tasks.cifar.evaluation import AttackPlan
from deqopt_tasks.cifar.gradients import ExactClassifier, GradientBy
from deqopt_tasks.cifar.threat import Threat
from deqopt_tasks.cifar.torch_attacks import PGD, Square
from torch import Tensor

from cifar_models import Contractive, Linear, images_for, joint
from deqopt.fixed_point import Damped
from deqopt.loop_settings import Norm
from robustness import L2, LINF, Whiten, evaluated, found_by_hand, shares, with_own_labels


class Brightness(Linear):
    """Class 1 where the mean is above ``threshold``."""

    def __init__(self, threshold: float) -> None:
        super().__init__(classes=2)
        self.threshold = threshold

    def f(self, z: tuple[Tensor, ...], image: Tensor) -> tuple[Tensor, ...]:
        mean = image.mean((1, 2, 3))
        return (torch.stack([torch.zeros_like(mean), mean - self.threshold + 0 * self.weight.sum()], dim=1),)


def flat_images(*means: float) -> Tensor:
    return torch.tensor(means).reshape(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()


# -- counting ---------------------------------------------------------------------------------------------------------


def test_an_image_is_robust_that_withstands_every_attack() -> None:
    """Two attacks that fool two images each, one of them the same, and one image that is wrong from the start."""
    images = flat_images(0.45, 0.48, 0.55, 0.58, 0.9)
    labels = torch.tensor([0, 0, 0, 0, 0])
    darker = Whiten(name="darker", share=1.0, above=False)
    brighter = Whiten(name="brighter", share=1.0, above=True)
    plan = AttackPlan(Threat(Norm.LINF, 0.1), (darker, brighter), swept=(darker,), radii=(0.3,))
    found = evaluated(plan, Brightness(0.57), images, labels)
    # 0.55 and 0.58 are above 0.5: only `brighter` moves them; 0.58 and 0.9 are class 1 as they are; 0.48 falls.
    # Another radius has no part in the worst.
    shared = {"none": 3 / 5, "darker": 2 / 5, "brighter": 2 / 5, "darker at 0.3": 1 / 5, "worst": 1 / 5}
    assert shares(found) == pytest.approx(shared) and len(found.scores) == 5


@pytest.mark.parametrize("batch", [1, 7])
def test_counts_of_batches_add_up_to_those_of_all(batch: int) -> None:
    classifier = Linear()
    images, labels = with_own_labels(classifier)
    labels = torch.where(torch.arange(24) % 5 == 0, (labels + 1) % 4, labels)
    attacks = joint_attacks(*joint(classifier, Norm.L2), evaluations=20)[:2]
    plan = AttackPlan(L2, tuple(attacks), (attacks[0],), (0.0, 0.1, 0.4))
    whole, parts = (evaluated(plan, classifier, images, labels, size) for size in (24, batch))
    assert shares(whole) == shares(parts) and whole.notes() == parts.notes()
    sweep = {radius: one.mean for radius, one in whole.sweep(attacks[0]).items()}
    clean, worst = (whole.accuracy(name).mean for name in ("none", "worst"))
    assert sweep[0.0] == clean == 19 / 24, "at radius 0 the attack leaves what is right without it"
    assert sweep[0.0] > sweep[0.1] > sweep[0.4]
    assert worst <= min(whole.accuracy(attack.name).mean for attack in attacks) < clean


def test_each_attack_runs_once_for_each_radius() -> None:
    first, second = (Whiten(name=name, share=1.0, above=True) for name in ("one", "two"))
    plan = AttackPlan(L2, (first, second), (first,), (0.0, 0.2))
    assert plan.asked == {"one": (first, 0.2), "two": (second, 0.2), "one at 0.0": (first, 0.0)}


# -- notes ------------------------------------------------------------------------------------------------------------


def notes(classifier: Classifier, *attacks: Attack) -> list[str]:
    images, labels = with_own_labels(classifier)
    return evaluated(AttackPlan(LINF, attacks), classifier, images, labels).notes()


def test_masked_gradients_are_told() -> None:
    """Of a classifier that sees rounded images: its gradient is zero, and a random search finds what PGD cannot."""
    (note,) = notes(Linear(levels=40), PGD(steps=5), Square(queries=60))
    assert note.startswith("Square, which sees no gradients, leaves ") and "the gradients are masked" in note
    share, best = (float(part.split()[-1]) for part in note.split(" %")[:2])
    assert share < best


class Dead(Contractive):
    """A head that is constant where it matters: its gradient is exactly zero at images below ``bright``."""

    def __init__(self, bright: float) -> None:
        super().__init__()
        self.bright = bright

    def f(self, z: tuple[Tensor, ...], image: Tensor) -> tuple[Tensor, ...]:
        dead = image.mean((1, 2, 3), keepdim=True) < self.bright
        return super().f(z, torch.where(dead, image.detach() + 0 * image, image))


@pytest.mark.parametrize("bright, dead", [(2.0, 24), (0.5, None)])
def test_a_gradient_of_exactly_zero_is_told_for_every_attack_that_follows_it(bright: float, dead: int | None) -> None:
    classifier = Dead(bright)
    images, labels = with_own_labels(classifier)
    labels[0] = (labels[0] + 1) % 3  # what is wrong as it is needs no attack
    if dead is None:
        dead = int((images.mean((1, 2, 3)) < bright)[1:].sum())
    else:
        dead -= 1
    own = joint_attacks(*joint(classifier, Norm.LINF), evaluations=20)[:1]
    attacks = (*own, PGD(steps=2), PGD(name="PGD unrolled", gradient=GradientBy.UNROLLED, steps=2), Square(queries=2))
    found = evaluated(AttackPlan(LINF, attacks), classifier, images, labels, batch=7)
    masked = {name: int(fact.sum()) for name, fact in found.scores.facts.items() if name.startswith("masked")}
    assert 0 < dead <= 23
    assert masked == dict.fromkeys(("masked_secant_tracking", "masked_pgd", "masked_pgd_unrolled"), dead)
    (note,) = [note for note in found.notes() if "masked" in note]
    assert note.endswith(
        "the gradient for secant tracking and PGD and PGD unrolled is exactly zero at "
        f"{dead} of 23 correctly classified images: the gradients are masked, do not trust the white-box figures"
    )


def test_plain_gradients_are_not() -> None:
    assert notes(Linear(), PGD(steps=5), Square(queries=60)) == []


def test_a_black_box_alone_is_compared_with_nothing() -> None:
    assert notes(Linear(levels=40), Square(queries=20)) == []


@pytest.mark.parametrize("square, told", [(3, 0), (2, 1)])
def test_as_much_as_the_best_gradient_finds_is_no_sign_of_masking(square: int, told: int) -> None:
    found = found_by_hand(AttackPlan(L2, (PGD(), Square())), {"none": 6, "PGD": 3, "Square": square, "worst": 2})
    assert len(found.notes()) == told


class Fragile(Brightness):
    """Has no equilibrium to be found by plain updates where the mean is above 0.6."""

    def f(self, z: tuple[Tensor, ...], image: Tensor) -> tuple[Tensor, ...]:
        gain = torch.where(image.mean((1, 2, 3)) > 0.6, 3.0, 0.0)
        return (super().f(z, image)[0] + gain[:, None] * z[0],)


def test_an_equilibrium_that_only_the_attacked_image_lacks_is_counted() -> None:
    plan = AttackPlan(Threat(Norm.LINF, 0.1), (Whiten(name="whiten", share=1.0, above=True),))
    images, labels = flat_images(0.4, 0.55, 0.58), torch.tensor([0, 0, 0])
    found = evaluated(plan, Fragile(0.9), images, labels, solver=Damped(max_nfe=20))
    assert found.accuracy("none").mean == 1
    assert found.notes()[0].startswith("the equilibrium of 2 of 3 images, clean or attacked, was not reached")


def test_what_was_not_reached_is_told() -> None:
    """A cell that grows without end has no equilibrium to read a class off, and no gradient."""
    classifier, solver, images = Contractive(3.0, bounded=False), Damped(max_nfe=20), images_for(4)
    labels = ExactClassifier(classifier, solver=solver).predict(images).label
    for batch in (3, 4):
        lost, gradients = evaluated(
            AttackPlan(L2, (PGD(steps=2),)), classifier, images, labels, batch, solver=solver
        ).notes()
        assert lost.startswith("the equilibrium of 4 of 4 images, clean or attacked, was not reached")
        assert gradients.startswith("the multiplier was not reached in 8 of 8 implicit gradients")
