"""The report of robust accuracy: its table, its picture, and the callback in a test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import pytest
import torch
from deqopt_tasks.cifar.attacks import Attack
from deqopt_tasks.cifar.catalogue import joint_attacks
from deqopt_tasks.cifar.evaluation import AttackPlan
from deqopt_tasks.cifar.robustness import RobustnessReport, accuracy_against_radius
from deqopt_tasks.cifar.torch_attacks import PGD, Square
from lightning.pytorch import Callback, LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from cifar_models import Linear, joint
from deqopt import JointModule, JointProblem, Task
from deqopt.errors import ProblemError
from deqopt.loop_settings import Norm
from deqopt.solvers import Tracking
from deqopt.state import State
from reported import figures_of_test, lines_said, rows_of
from robustness import L2, Labelled, Whiten, evaluated, found_by_hand, report, shares, with_own_labels
from tiny_task import quiet_trainer


def test_the_report_is_a_table_of_all_accuracies() -> None:
    attack, box = Whiten(name="whiten", share=1.0, above=True), Square()
    told = report(Linear(), AttackPlan(L2, (attack, box), (attack,), (0.0, 0.2)))
    right = {"none": 6, "whiten": 4, "Square": 3, "whiten at 0.0": 6, "worst": 1}
    told.scores, told.seen = found_by_hand(told.plan, right).scores, 20
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


# -- complaints -------------------------------------------------------------------------------------------------------


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


# -- the callback -----------------------------------------------------------------------------------------------------


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
        loader = DataLoader([Labelled(*one) for one in zip(*self.samples, numbers, strict=True)], self.batch_size)  # type: ignore[arg-type]
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
