"""Robust accuracy: what is counted, what is said about it, its table, its picture, and the callback in a test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import pytest
import torch
from deqopt_tasks.cifar.attacks import Attack
from deqopt_tasks.cifar.catalogue import joint_attacks
from deqopt_tasks.cifar.classifier import Classifier
from deqopt_tasks.cifar.evaluation import AttackPlan
from deqopt_tasks.cifar.gradients import ExactClassifier, GradientBy
from deqopt_tasks.cifar.robustness import RobustnessReport, accuracy_against_radius
from deqopt_tasks.cifar.threat import Threat
from deqopt_tasks.cifar.torch_attacks import PGD, Square
from lightning.pytorch import Callback, LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from cifar_models import Contractive, Linear, images_for, joint
from deqopt import JointModule, JointProblem, Task
from deqopt.data import ImageBatch
from deqopt.errors import ProblemError
from deqopt.fixed_point import Damped
from deqopt.loop_settings import Norm
from deqopt.solvers import Tracking
from deqopt.state import State
from reported import figures_of_test, lines_said, rows_of
from robustness import L2, LINF, Whiten, evaluated, found_by_hand, report, shares, with_own_labels
from tiny_task import quiet_trainer


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
    assert shares(whole) == shares(parts) and whole.doubts() == parts.doubts()
    sweep = {radius: one.mean for radius, one in whole.sweep(attacks[0]).items()}
    clean, worst = (whole.accuracy(name).mean for name in ("none", "worst"))
    assert sweep[0.0] == clean == 19 / 24, "at radius 0 the attack leaves what is right without it"
    assert sweep[0.0] > sweep[0.1] > sweep[0.4]
    assert worst <= min(whole.accuracy(attack.name).mean for attack in attacks) < clean


def test_each_attack_runs_once_for_each_radius() -> None:
    first, second = (Whiten(name=name, share=1.0, above=True) for name in ("one", "two"))
    plan = AttackPlan(L2, (first, second), (first,), (0.0, 0.2))
    assert plan.asked == {"one": (first, 0.2), "two": (second, 0.2), "one at 0.0": (first, 0.0)}


def notes(classifier: Classifier, *attacks: Attack) -> list[str]:
    images, labels = with_own_labels(classifier)
    return evaluated(AttackPlan(LINF, attacks), classifier, images, labels).doubts()


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
    (note,) = [note for note in found.doubts() if "masked" in note]
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
    assert len(found.doubts()) == told


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
    assert found.doubts()[0].startswith("the equilibrium of 2 of 3 images, clean or attacked, was not reached")


def test_what_was_not_reached_is_told() -> None:
    """A cell that grows without end has no equilibrium to read a class off, and no gradient."""
    classifier, solver, images = Contractive(3.0, bounded=False), Damped(max_nfe=20), images_for(4)
    labels = ExactClassifier(classifier, solver=solver).predict(images).label
    for batch in (3, 4):
        lost, gradients = evaluated(
            AttackPlan(L2, (PGD(steps=2),)), classifier, images, labels, batch, solver=solver
        ).doubts()
        assert lost.startswith("the equilibrium of 4 of 4 images, clean or attacked, was not reached")
        assert gradients.startswith("the multiplier was not reached in 8 of 8 implicit gradients")


def test_the_report_is_a_table_of_all_accuracies() -> None:
    attack, box = Whiten(name="whiten", share=1.0, above=True), Square()
    right = {"none": 6, "whiten": 4, "Square": 3, "whiten at 0.0": 6, "worst": 1}
    told = found_by_hand(AttackPlan(L2, (attack, box), (attack,), (0.0, 0.2)), right)
    told.seen = 20
    assert told.title() == "Attacks: 8 of 20 test images, L2 radius 0.2"
    assert told.table().splitlines() == [
        "        accuracy in %   minus none       sees",
        "none       75.0 ±38.7",
        "whiten     50.0 ±44.7  -25.0 ±38.7  gradients",
        "Square     37.5 ±43.3  -37.5 ±43.3     logits",
        "worst      12.5 ±29.6  -62.5 ±43.3",
        "Accuracy in % against radius",
        "radius     0   0.2",
        "whiten  75.0  50.0",
    ]
    assert told.notes() == [
        "Note: Square, which sees no gradients, leaves 37.5 %, less than every attack by gradients (at best 50.0 %): "
        "the gradients are masked, do not trust the white-box figures"
    ]


def test_the_figure_has_a_curve_from_the_clean_accuracy_and_the_trained_radius() -> None:
    attack, other = (Whiten(name=name, share=1.0, above=True) for name in ("swept", "once"))
    plan = AttackPlan(L2, (attack, other), (attack,), (0.4, 0.1))
    right = {"none": 6, "swept": 4, "once": 2, "swept at 0.4": 0, "swept at 0.1": 5, "worst": 1}
    (axes,) = accuracy_against_radius(found_by_hand(plan, right)).axes
    curves = {str(one.get_label()): one[0] for one in axes.containers}
    assert list(curves) == ["swept", "once", "worst"]
    assert list(curves["swept"].get_xdata()) == [0.0, 0.1, 0.2, 0.4]
    assert list(curves["swept"].get_ydata()) == [75.0, 62.5, 50.0, 0.0]
    assert list(curves["once"].get_xdata()) == [0.2]
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert list(lines["trained radius 0.2"].get_xdata()) == [0.2, 0.2]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: AttackPlan(L2, ()), "robustness needs at least one attack"),
        (lambda: AttackPlan(L2, (PGD(), PGD(steps=3))), "two methods are called 'PGD': give them names of their own"),
        (lambda: AttackPlan(L2, (PGD(),), (PGD(),), (-1.0,)), "radius must be 0 or larger, got -1"),
        (lambda: report(Linear(), AttackPlan(L2, (PGD(),)), images=0), "attacks: most must be at least 1, got 0"),
    ],
    ids=["no attack", "one name", "radius", "images"],
)
def test_settings_that_cannot_be_meant(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        make()


class Attacked(Task):
    """A linear classifier that is attacked in its test.

    Args:
        samples: how many; every fifth has a wrong label.
    """

    def __init__(
        self,
        samples: int = 22,
        batch_size: int = 4,
        images: int = 16,
        torch_attack: bool = False,
    ) -> None:
        super().__init__()
        self.classifier = Linear()
        image, label = with_own_labels(self.classifier, samples)
        label = torch.where(torch.arange(samples) % 5 == 0, (label + 1) % 4, label)
        self.samples, self.batch_size, self.images, self.torch_attack = (image, label), batch_size, images, torch_attack
        self.make, self.begin = joint(self.classifier, Norm.L2)

    def datamodule(self) -> LightningDataModule:
        numbers = torch.arange(len(self.samples[0]))
        loader = DataLoader([ImageBatch(*one) for one in zip(*self.samples, numbers, strict=True)], self.batch_size)  # type: ignore[arg-type]
        data = LightningDataModule()
        data.test_dataloader = lambda: loader  # type: ignore[method-assign]
        return data

    def start(self, batch: ImageBatch) -> tuple[State, Tensor]:
        return self.begin(batch.image)

    def problem(self, batch: ImageBatch) -> JointProblem:
        return self.make(batch.image, batch.label, L2.radius)

    @property
    def attacks(self) -> tuple[Attack, ...]:
        own = joint_attacks(self.make, self.begin, evaluations=20)[:2]
        return (PGD(steps=3),) if self.torch_attack else tuple(own)

    @cached_property
    def report(self) -> RobustnessReport:
        attacks = self.attacks
        return report(self.classifier, AttackPlan(L2, attacks, attacks[:1], (0.0, 0.1, 0.2)), images=self.images)

    def callbacks(self) -> list[Callback]:
        return [self.report]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_callback_logs_prints_and_writes_what_the_evaluation_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = lines_said(monkeypatch)
    task = Attacked()
    figures = figures_of_test(task, Tracking(max_nfe=8, inner=1), tmp_path, logger=True)
    attacks, (images, labels) = task.attacks, task.samples
    plan = AttackPlan(L2, attacks, attacks[:1], (0.0, 0.1, 0.2))
    wanted = shares(evaluated(plan, task.classifier, images[:16], labels[:16]))
    assert 0 < wanted["worst"] < wanted["none"] < 1
    logged = {
        "robust_accuracy_none": wanted["none"],
        "robust_accuracy_worst": wanted["worst"],
        "robust_accuracy_secant_tracking": wanted["secant tracking"],
        "robust_accuracy_joint_anderson": wanted["joint Anderson"],
        "sweep_secant_tracking_0": wanted["none"],
        "sweep_secant_tracking_0.1": wanted["secant tracking at 0.1"],
        "sweep_secant_tracking_0.2": wanted["secant tracking"],
    }
    assert {name: figures[name] for name in logged} == pytest.approx(logged)
    assert len(said) == 1 and said[0].startswith("Attacks: 16 of 22 test images, L2 radius 0.2\n")
    assert list(tmp_path.rglob("figures/robustness.png")) and list(tmp_path.rglob("figures/attacks.png"))
    rows = {(row["attack"], float(row["radius"])): row for row in rows_of(tmp_path, "robustness")}
    assert set(rows) == {
        *(("secant tracking", radius) for radius in (0.0, 0.1, 0.2)),
        ("joint Anderson", 0.2),
        ("worst", 0.2),
    }
    assert float(rows["secant tracking", 0.0]["accuracy"]) == wanted["none"]
    assert float(rows["worst", 0.2]["accuracy"]) == wanted["worst"]
    assert rows["worst", 0.2]["images"] == "16" and rows["worst", 0.2]["norm"] == "L2"


def test_what_is_not_installed_is_told_before_the_test_and_not_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    callback, trainer, module = Attacked(torch_attack=True).report, quiet_trainer(tmp_path), JointModule(Attacked())
    callback.setup(trainer, module, "fit")
    with pytest.raises(ProblemError, match="the attack PGD needs the extra adversarial"):
        callback.setup(trainer, module, "test")
