"""Robust accuracy: what is counted, what is said about it, and the callback that does so in a test."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from deqopt_tasks.cifar.attacks import Attack
from deqopt_tasks.cifar.catalogue import joint_attacks
from deqopt_tasks.cifar.classifier import Classifier
from deqopt_tasks.cifar.evaluation import Robustness, Summary, Trial
from deqopt_tasks.cifar.figures import accuracy_against_radius
from deqopt_tasks.cifar.gradients import ExactClassifier, GradientBy
from deqopt_tasks.cifar.robustness import RobustnessReport
from deqopt_tasks.cifar.threat import Threat
from deqopt_tasks.cifar.torch_attacks import PGD, Square
from lightning.pytorch import Callback, LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from cifar_models import Contractive, Linear, images_for, joint
from deqopt import JointModule, JointProblem, Task
from deqopt.errors import ProblemError
from deqopt.fixed_point import Damped
from deqopt.loop_settings import Norm
from deqopt.solvers import Tracking
from deqopt.state import State
from paths import SUPPORT
from tiny_task import quiet_trainer

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


def evaluated(
    robustness: Robustness, classifier: Classifier, images: Tensor, labels: Tensor, batch: int = 100
) -> Summary:
    counts, model = robustness.no_counts(), ExactClassifier(classifier)
    for part, answer in zip(images.split(batch), labels.split(batch), strict=True):
        counts += robustness.judge(model, part, answer).counts()
    return robustness.summary(counts.tolist())


def with_own_labels(classifier: Classifier, count: int = 24) -> tuple[Tensor, Tensor]:
    images = images_for(count, spread=0.5)
    return images, ExactClassifier(classifier).predict(images).label


# -- counting ---------------------------------------------------------------------------------------------------------


def test_an_image_is_robust_that_withstands_every_attack() -> None:
    """Two attacks that fool two images each, one of them the same, and one image that is wrong from the start."""
    images = flat_images(0.45, 0.48, 0.55, 0.58, 0.9)
    labels = torch.tensor([0, 0, 0, 0, 0])
    darker = Whiten(name="darker", share=1.0, above=False)
    brighter = Whiten(name="brighter", share=1.0, above=True)
    robustness = Robustness(Threat(Norm.LINF, 0.1), (darker, brighter), swept=(darker,), radii=(0.3,))
    found = evaluated(robustness, Brightness(0.57), images, labels)
    # 0.55 and 0.58 are above 0.5: only `brighter` moves them; 0.58 and 0.9 are class 1 as they are; 0.48 falls.
    assert found.images == 5 and found.clean == 3 / 5
    assert found.attacked == {darker: 2 / 5, brighter: 2 / 5}
    assert found.worst == 1 / 5, "which another radius has no part in"
    assert found.sweep == {Trial(darker, 0.3): 1 / 5}


@pytest.mark.parametrize("batch", [1, 7])
def test_counts_of_batches_add_up_to_those_of_all(batch: int) -> None:
    classifier = Linear()
    images, labels = with_own_labels(classifier)
    labels = torch.where(torch.arange(24) % 5 == 0, (labels + 1) % 4, labels)
    attacks = joint_attacks(*joint(classifier, Norm.L2), evaluations=20)[:2]
    robustness = Robustness(L2, tuple(attacks), (attacks[0],), (0.0, 0.1, 0.4))
    whole, parts = (evaluated(robustness, classifier, images, labels, size) for size in (24, batch))
    assert whole == parts
    sweep = {trial.radius: share for trial, share in whole.sweep.items()}
    assert sweep[0.0] == whole.clean == 19 / 24, "at radius 0 the attack leaves what is right without it"
    assert sweep[0.0] > sweep[0.1] > sweep[0.4]
    assert whole.worst <= min(whole.attacked.values()) < whole.clean


def test_each_attack_runs_once_for_each_radius() -> None:
    first, second = (Whiten(name=name, share=1.0, above=True) for name in ("one", "two"))
    robustness = Robustness(L2, (first, second), (first,), (0.0, 0.2))
    assert robustness.trials == (Trial(first, 0.2), Trial(second, 0.2), Trial(first, 0.0))
    assert len(robustness.no_counts()) == len(robustness.judge(ExactClassifier(Linear()), *some()).counts())


def some() -> tuple[Tensor, Tensor]:
    return images_for(2), torch.tensor([0, 1])


# -- notes ------------------------------------------------------------------------------------------------------------


def notes(classifier: Classifier, *attacks: Attack) -> list[str]:
    images, labels = with_own_labels(classifier)
    return evaluated(Robustness(LINF, attacks), classifier, images, labels).notes()


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
    summary = evaluated(Robustness(LINF, attacks), classifier, images, labels, batch=7)
    assert 0 < dead <= 23 and summary.masked == dict.fromkeys(attacks[:3], dead)
    (note,) = [note for note in summary.notes() if "masked" in note]
    told = (
        "the gradient for secant tracking and PGD and PGD unrolled is exactly zero at "
        f"{dead} of 23 correctly classified images: the gradients are masked, do not trust the white-box figures"
    )
    assert note.endswith(told)
    assert told in summary.report(24)


def test_plain_gradients_are_not() -> None:
    assert notes(Linear(), PGD(steps=5), Square(queries=60)) == []


def test_a_black_box_alone_is_compared_with_nothing() -> None:
    assert notes(Linear(levels=40), Square(queries=20)) == []


def test_as_much_as_the_best_gradient_finds_is_no_sign_of_masking() -> None:
    robustness = Robustness(L2, (PGD(), Square()))
    assert robustness.summary([8, 6, 3, 0, 0, 0, 3, 3]).notes() == []
    assert len(robustness.summary([8, 6, 2, 0, 0, 0, 3, 2]).notes()) == 1


class Fragile(Brightness):
    """Has no equilibrium to be found by plain updates where the mean is above 0.6."""

    def f(self, z: tuple[Tensor, ...], image: Tensor) -> tuple[Tensor, ...]:
        gain = torch.where(image.mean((1, 2, 3)) > 0.6, 3.0, 0.0)
        return (super().f(z, image)[0] + gain[:, None] * z[0],)


def test_an_equilibrium_that_only_the_attacked_image_lacks_is_counted() -> None:
    model = ExactClassifier(Fragile(0.9), solver=Damped(max_nfe=20))
    robustness = Robustness(Threat(Norm.LINF, 0.1), (Whiten(name="whiten", share=1.0, above=True),))
    verdicts = robustness.judge(model, flat_images(0.4, 0.55, 0.58), torch.tensor([0, 0, 0]))
    assert verdicts.clean.all() and verdicts.reached.tolist() == [True, False, False]


def test_what_was_not_reached_is_told() -> None:
    """A cell that grows without end has no equilibrium to read a class off, and no gradient."""
    model, images = ExactClassifier(Contractive(3.0, bounded=False), solver=Damped(max_nfe=20)), images_for(4)
    robustness = Robustness(L2, (PGD(steps=2),))
    counts = robustness.judge(model, images, model.predict(images).label).counts()
    lost, gradients = robustness.summary(counts.tolist()).notes()
    assert lost.startswith("the equilibrium of 4 of 4 images, clean or attacked, was not reached")
    assert gradients.startswith("the multiplier was not reached in 8 of 8 implicit gradients")


def test_the_report_is_a_table_of_all_accuracies() -> None:
    attack, box = Whiten(name="whiten", share=1.0, above=True), Square()
    summary = Robustness(L2, (attack, box), (attack,), (0.0, 0.2)).summary([8, 6, 1, 0, 0, 0, 4, 3, 6])
    assert summary.report(20).splitlines() == [
        "Robustness of 8 of 20 test images, L2 radius 0.2",
        "              accuracy       sees",
        "clean           75.0 %",
        "whiten          50.0 %  gradients",
        "Square          37.5 %     logits",
        "worst of all    12.5 %",
        "Accuracy against radius",
        "radius       0     0.2",
        "whiten  75.0 %  50.0 %",
        "Note: Square, which sees no gradients, leaves 37.5 %, less than every attack by gradients (at best 50.0 %): "
        "the gradients are masked, do not trust the white-box figures",
    ]


def test_the_figure_has_a_curve_from_the_clean_accuracy_and_the_trained_radius() -> None:
    attack, other = (Whiten(name=name, share=1.0, above=True) for name in ("swept", "once"))
    robustness = Robustness(L2, (attack, other), (attack,), (0.4, 0.1))
    (axes,) = accuracy_against_radius(robustness.summary([8, 6, 1, 0, 0, 0, 4, 2, 0, 5])).axes
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert list(lines["swept"].get_xdata()) == [0.0, 0.1, 0.2, 0.4]  # type: ignore[arg-type]
    assert list(lines["swept"].get_ydata()) == [75.0, 62.5, 50.0, 0.0]  # type: ignore[arg-type]
    assert list(lines["once"].get_xdata()) == [0.2]  # type: ignore[arg-type]
    assert list(lines["trained radius 0.2"].get_xdata()) == [0.2, 0.2]  # type: ignore[arg-type]


# -- complaints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Robustness(L2, ()), "robustness needs at least one attack"),
        (lambda: Robustness(L2, (PGD(), PGD(steps=3))), "two attacks are called 'pgd': give them names of their own"),
        (lambda: Robustness(L2, (PGD(),), (PGD(),), (-1.0,)), "radius must be 0 or larger, got -1"),
        (lambda: report(Linear(), (PGD(),), images=0), "at least one test image to attack, got 0"),
    ],
    ids=["no attack", "one name", "radius", "images"],
)
def test_settings_that_cannot_be_meant(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        make()


# -- the callback -----------------------------------------------------------------------------------------------------


class Labelled(NamedTuple):
    """Images in [0, 1] with their labels."""

    image: Tensor
    label: Tensor


def report(classifier: Classifier, attacks: tuple[Attack, ...], **settings: Any) -> RobustnessReport:
    return RobustnessReport(classifier, lambda batch: (batch.image, batch.label), L2, attacks, **settings)


class Attacked(Task):
    """A linear classifier that is attacked in its test.

    Args:
        samples: how many; every fifth has a wrong label.
        spoiled: index of an image that is NaN, or None.
    """

    def __init__(
        self,
        samples: int = 22,
        batch_size: int = 4,
        images: int = 16,
        spoiled: int | None = None,
        torch_attack: bool = False,
    ) -> None:
        super().__init__()
        self.classifier = Linear()
        image, label = with_own_labels(self.classifier, samples)
        label = torch.where(torch.arange(samples) % 5 == 0, (label + 1) % 4, label)
        if spoiled is not None:
            image[spoiled] = torch.nan
        self.samples, self.batch_size, self.images, self.torch_attack = (image, label), batch_size, images, torch_attack
        self.make, self.begin = joint(self.classifier, Norm.L2)

    def datamodule(self) -> LightningDataModule:
        loader = DataLoader([Labelled(*one) for one in zip(*self.samples, strict=True)], self.batch_size)  # type: ignore[arg-type]
        data = LightningDataModule()
        data.test_dataloader = lambda: loader  # type: ignore[method-assign]
        return data

    def start(self, batch: Labelled) -> tuple[State, Tensor]:
        return self.begin(batch.image)

    def problem(self, batch: Labelled) -> JointProblem:
        return self.make(batch.image, batch.label, L2.radius)

    @property
    def attacks(self) -> tuple[Attack, ...]:
        own = joint_attacks(self.make, self.begin, evaluations=20)[:2]
        return (PGD(steps=3),) if self.torch_attack else tuple(own)

    @cached_property
    def report(self) -> RobustnessReport:
        attacks = self.attacks
        return report(self.classifier, attacks, swept=attacks[:1], radii=[0.0, 0.1, 0.2], images=self.images)

    def callbacks(self) -> list[Callback]:
        return [self.report]


def figures_of_test(task: Attacked, directory: Path, **settings: Any) -> dict[str, float]:
    """The figures of a test."""
    module = JointModule(task, solver=Tracking(max_nfe=8, inner=1))
    trainer = quiet_trainer(directory, logger=True, **settings)
    (figures,) = trainer.test(module, datamodule=task.datamodule(), verbose=False)
    return dict(figures)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_callback_logs_prints_and_writes_what_the_evaluation_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("deqopt_tasks.cifar.robustness.rank_zero_info", said.append)
    task = Attacked()
    figures = figures_of_test(task, tmp_path)
    attacks, (images, labels) = task.attacks, task.samples
    robustness = Robustness(L2, attacks, attacks[:1], (0.0, 0.1, 0.2))
    wanted = evaluated(robustness, task.classifier, images[:16], labels[:16])
    assert 0 < wanted.worst < wanted.clean < 1
    logged = {
        "robust_accuracy_none": wanted.clean,
        "robust_accuracy_worst": wanted.worst,
        "robust_accuracy_secant_tracking": wanted.attacked[attacks[0]],
        "robust_accuracy_joint_anderson": wanted.attacked[attacks[1]],
        "sweep_secant_tracking_0": wanted.clean,
        "sweep_secant_tracking_0.1": wanted.sweep[robustness.trials[3]],
        "sweep_secant_tracking_0.2": wanted.attacked[attacks[0]],
    }
    assert {name: figures[f"test/{name}"] for name in logged} == pytest.approx(logged)
    assert len(said) == 1 and said[0].startswith("Robustness of 16 of 22 test images, L2 radius 0.2\n")
    (picture,) = tmp_path.rglob("figures/robustness.png")
    with picture.with_suffix(".csv").open() as file:
        rows = {(row["attack"], float(row["radius"])): row for row in csv.DictReader(file)}
    assert set(rows) == {
        *(("secant tracking", radius) for radius in (0.0, 0.1, 0.2)),
        ("joint Anderson", 0.2),
        ("worst of all", 0.2),
    }
    assert float(rows["secant tracking", 0.0]["accuracy"]) == wanted.clean
    assert float(rows["worst of all", 0.2]["accuracy"]) == wanted.worst
    assert rows["worst of all", 0.2]["images"] == "16" and rows["worst of all", 0.2]["norm"] == "L2"


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:1 of 4 samples of a batch hold NaN")
def test_spoiled_images_are_left_out_and_a_second_test_counts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("deqopt_tasks.cifar.robustness.rank_zero_info", said.append)
    task = Attacked(spoiled=3, images=100)
    module, trainer = JointModule(task, solver=Tracking(max_nfe=8, inner=1)), quiet_trainer(tmp_path)
    for _ in range(2):
        trainer.test(module, datamodule=task.datamodule(), verbose=False)
    assert len(said) == 2 and said[0] == said[1] and said[0].startswith("Robustness of 21 of 21 test images")


def test_what_is_not_installed_is_told_before_the_test_and_not_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    callback, trainer, module = Attacked(torch_attack=True).report, quiet_trainer(tmp_path), JointModule(Attacked())
    callback.setup(trainer, module, "fit")
    with pytest.raises(ProblemError, match="the attack PGD needs the extra adversarial"):
        callback.setup(trainer, module, "test")


def worker(devices: int, batch_size: int, directory: Path) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    task = Attacked(samples=24, batch_size=batch_size, images=15)
    figures = figures_of_test(task, directory, devices=devices, strategy="ddp" if devices > 1 else "auto")
    torch.save(figures, directory / f"rank_{os.environ.get('LOCAL_RANK', '0')}.pt")


@pytest.mark.slow
def test_two_processes_share_the_images_and_find_what_one_does(tmp_path: Path) -> None:
    """The 8 and 7 that they attack are the first 15 of the test images, in turn."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT)}
    command = [sys.executable, __file__, "2", "2", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    task = Attacked(samples=24, images=15)
    images, labels = task.samples
    attacks = task.attacks
    wanted = evaluated(Robustness(L2, attacks), task.classifier, images[:15], labels[:15])
    for rank in range(2):
        figures = torch.load(tmp_path / f"rank_{rank}.pt")
        assert figures["test/robust_accuracy_none"] == pytest.approx(wanted.clean)
        assert figures["test/robust_accuracy_worst"] == pytest.approx(wanted.worst)
        assert figures["test/robust_accuracy_joint_anderson"] == pytest.approx(wanted.attacked[attacks[1]])
    assert done.stderr.count("Robustness of 15 of 24 test images") == 1
    assert len(list(tmp_path.rglob("robustness.png"))) == 1


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
