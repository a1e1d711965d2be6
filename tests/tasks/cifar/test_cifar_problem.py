"""The task cifar: its joint problem in training and in evaluation, the gradient of what it learns, what it refuses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from deqopt_tasks.cifar.catalogue import AttackName
from deqopt_tasks.cifar.gradients import ExactClassifier
from deqopt_tasks.cifar.losses import Adversarial, Clean, Trades, TrainingLoss
from deqopt_tasks.cifar.task import Cifar
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor
from torch.nn import functional as F

from deqopt.adjoints import Envelope
from deqopt.data import ImageBatch
from deqopt.equilibrium import Equilibrium
from deqopt.errors import DataError, ProblemError
from deqopt.fixed_point import Anderson, Damped, FixedPointSolver
from deqopt.loop_settings import Norm
from deqopt.problem import JointProblem
from deqopt.regularizers import SpectralPenalty
from deqopt.solvers import PGD, Bilevel, JointSolver, SecantTracking, solve_exactly
from deqopt.testing import check_task

SOLVERS = [AttackName.SOLVERS]
SETTINGS: dict[str, Any] = {"size": 8, "image_channels": 1, "widths": [8], "resolution": 4, "attacks": SOLVERS}
RADII = {Norm.L2: 0.5, Norm.LINF: 0.1}
SOLVER = SecantTracking(max_nfe=8, step_size=2.0)


def small(**settings: Any) -> Cifar:
    torch.manual_seed(0)
    return Cifar(**{**SETTINGS, **settings})


def batch_of(count: int = 6, classes: int = 10, dtype: torch.dtype = torch.float32) -> ImageBatch:
    """Random images, a quarter of whose pixels are black and a quarter white."""
    noise = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return ImageBatch((2 * noise - 0.5).clamp(0, 1), torch.arange(count) % classes, torch.arange(count))


def solved(task: Cifar, batch: ImageBatch, solver: JointSolver = SOLVER) -> tuple[JointProblem, Equilibrium]:
    problem = task.problem(batch)
    return problem, solver.solve(problem, *task.start(batch), adjoint=Envelope())


def logits_of(task: Cifar, images: Tensor, updates: int = 100) -> Tensor:
    """By plain updates from zero; differentiable."""
    z = task.classifier.start(images)
    for _ in range(updates):
        z = task.classifier.f(z, images)
    return task.classifier.logits(z)


def log_loss(logits: Tensor, label: Tensor) -> Tensor:
    return -logits.log_softmax(1).gather(1, label[:, None])[:, 0]


def divergence(clean: Tensor, attacked: Tensor) -> Tensor:
    return F.kl_div(attacked.log_softmax(1), clean.softmax(1), reduction="none").sum(1)


@dataclass(frozen=True)
class Kind:
    """A loss, and the same of clean and attacked logits written down again."""

    loss: TrainingLoss
    value: Callable[[Tensor, Tensor, Tensor], Tensor]


KINDS = {
    "adversarial": Kind(Adversarial(), lambda clean, attacked, label: log_loss(attacked, label)),
    "mixed": Kind(
        Adversarial(clean_weight=0.3),
        lambda clean, attacked, label: 0.7 * log_loss(attacked, label) + 0.3 * log_loss(clean, label),
    ),
    "clean": Kind(Clean(), lambda clean, attacked, label: log_loss(clean, label)),
    "trades": Kind(
        Trades(beta=4.0), lambda clean, attacked, label: log_loss(clean, label) + 4 * divergence(clean, attacked)
    ),
}
of_every_kind = pytest.mark.parametrize("kind", KINDS)
in_every_norm = pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF], ids=lambda norm: norm.name)


# one half of the product, in which every pair of two of the three occurs
HALF = [case for i, case in enumerate(product(KINDS, RADII, (None, 3))) if (i + i // 2 + i // 4) % 2 == 0]


@pytest.mark.parametrize(("kind", "norm", "unroll"), HALF)
def test_the_contract(kind: str, norm: Norm, unroll: int | None) -> None:
    check_task(small(loss=KINDS[kind].loss, norm=norm, radius=RADII[norm], unroll=unroll, widths=[4, 4]))


@in_every_norm
@of_every_kind
def test_the_gradient_is_that_of_the_loss_at_its_worst(kind: str, norm: Norm) -> None:
    """By finite differences of the optimum in a random direction of all parameters. With two classes, because then the
    divergence has one worst direction."""
    radius = {Norm.L2: 0.2, Norm.LINF: 0.02}[norm]
    loss, batch = KINDS[kind], batch_of(4, classes=2, dtype=torch.float64)
    task = small(loss=loss.loss, norm=norm, radius=radius, classes=2).double().train()
    solver = Bilevel(max_nfe=150, tol=1e-9, descent=PGD(5 * radius, norm), inner=Anderson(max_nfe=40, tol=1e-11))

    def value(x: Tensor) -> Tensor:
        return loss.value(logits_of(task, batch.image), logits_of(task, batch.image + x), batch.label)

    def optimum() -> Equilibrium:
        torch.manual_seed(2)  # of the start
        return solved(task, batch, solver)[1]

    def moved(step: float) -> float:
        with torch.no_grad():
            for parameter, part in zip(task.parameters(), direction, strict=True):
                parameter.add_(step * part)
        return value(optimum().x).mean().item()

    found = optimum()
    torch.testing.assert_close(task.loss(found, batch), value(found.x), rtol=1e-6, atol=1e-8)
    x = found.x.requires_grad_()
    (ascent,) = torch.autograd.grad(value(x).sum(), x, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        further = task.threat.feasible(batch.image).project(x + 100 * radius * ascent) * loss.loss.attacks
        gain, more = value(x) - value(0 * x), value(further) - value(x)
    assert (more <= 1e-2 * gain).all() and (gain > 0).all() == loss.loss.attacks

    gradients = torch.autograd.grad(task.loss(found, batch).mean(), list(task.parameters()))
    direction = [torch.randn_like(part) * part.detach().abs().mean() for part in task.parameters()]
    slope = sum(float((one * other).sum()) for one, other in zip(gradients, direction, strict=True))
    step = 1e-5
    above, below = moved(step), moved(-2 * step)
    assert slope == pytest.approx((above - below) / (2 * step), rel=2e-3)


@in_every_norm
@of_every_kind
def test_the_perturbation_is_feasible_and_the_worst_in_sight(kind: str, norm: Norm) -> None:
    loss, radius, batch = KINDS[kind], RADII[norm], batch_of(16)
    task = small(loss=loss.loss, norm=norm, radius=radius)
    for training in (True, False):
        x = solved(task.train(training), batch)[1].x
        attacks = loss.loss.attacks or not training
        norms = norm.of(x.flatten(1))
        assert (norms <= radius * (1 + 1e-6)).all() and ((norms > 0.9 * radius) == attacks).all()
        assert (x >= -batch.image).all() and (x <= 1 - batch.image).all()
        value = loss.value if training else KINDS["adversarial"].value
        with torch.no_grad():
            clean, attacked = logits_of(task, batch.image), logits_of(task, batch.image + x)
        gain = value(clean, attacked, batch.label) - value(clean, clean, batch.label)
        assert ((gain > 0) == attacks).all()


@of_every_kind
def test_the_outcome_is_of_the_attacked_images(kind: str) -> None:
    task, batch = small(loss=KINDS[kind].loss).train(), batch_of()
    found = solve_exactly(*solved(task, batch))
    logits, label = task.outcome(found, batch)
    torch.testing.assert_close(logits, logits_of(task, batch.image + found.x), rtol=1e-3, atol=1e-3)
    assert torch.equal(label, batch.label)


@of_every_kind
def test_evaluation_is_under_attack_whatever_the_loss(kind: str) -> None:
    task, plain, batch = small(loss=KINDS[kind].loss).eval(), small().eval(), batch_of()
    found, expected = (solve_exactly(*solved(one, batch)) for one in (task, plain))
    assert torch.equal(found.x, expected.x) and torch.equal(found.objective, expected.objective)
    values = log_loss(logits_of(task, batch.image + found.x), batch.label)
    torch.testing.assert_close(task.loss(found, batch), values, rtol=1e-3, atol=1e-4)
    assert not torch.equal(solved(task.train(), batch)[1].x, expected.x) or kind == "adversarial"


@cache
def trained(kind: str) -> tuple[Cifar, ImageBatch]:
    """On a batch of digits at a large radius, with a penalty that keeps f contracting; to be copied before changes."""
    task = small(loss=KINDS[kind].loss, radius=1.25, batch_size=32).train()
    task.datamodule().setup("fit")
    batch = next(iter(task.datamodule().train_dataloader()))
    optimiser, penalty = torch.optim.Adam(task.parameters(), 1e-2), SpectralPenalty()
    for _ in range(15):
        optimiser.zero_grad()
        problem, found = solved(task, batch)
        (task.loss(found, batch).mean() + penalty.penalty(problem, found)).backward()
        optimiser.step()
    return task, batch


@pytest.mark.parametrize("kind", ["adversarial", "clean"])
def test_confidence_is_no_robustness_for_the_solver_that_trains(kind: str) -> None:
    """Logits times 100, as long training without attacks may make them: no decision changes."""
    task, batch = trained(kind)
    clean, robust = accuracies(task, batch)
    assert 0 < robust < clean
    left = set()
    for confidence in (10, 30, 100):
        sure = deepcopy(task)
        with torch.no_grad():
            sure.classifier.linear.weight *= confidence
            sure.classifier.linear.bias *= confidence
        found = solve_exactly(*solved(sure.eval(), batch))
        still, under_attack = accuracies(sure, batch)
        assert still == clean and under_attack <= robust + 1 / 32
        left.add(under_attack)
        values = log_loss(confidence * logits_of(task, batch.image + found.x), batch.label)
        torch.testing.assert_close(sure.loss(found, batch), values, rtol=1e-3, atol=1e-2 * confidence)
    assert len(left) == 1, left


def accuracies(task: Cifar, batch: ImageBatch) -> tuple[float, float]:
    """Clean, and under attack."""
    (metric,) = task.eval().metrics().values()
    clean = ExactClassifier(task.classifier).predict(batch.image).label == batch.label
    return clean.float().mean().item(), float(metric(*task.outcome(solve_exactly(*solved(task, batch)), batch)))


def test_an_attack_lowers_the_accuracy_and_adversarial_training_what_it_takes() -> None:
    robust = {}
    for kind in ("adversarial", "clean"):
        task, batch = deepcopy(trained(kind))
        clean, robust[kind] = accuracies(task, batch)
        assert robust[kind] <= clean and clean > 0.9
        task.threat = task.threat.at(1e-6)
        assert accuracies(task, batch) == (clean, clean)
    assert 0 < robust["clean"] < 0.7 and robust["adversarial"] > robust["clean"] + 0.2


def test_images_of_unknown_class_are_attacked_as_what_the_network_sees() -> None:
    task, batch = small().eval(), batch_of(8)
    own = batch._replace(label=logits_of(task, batch.image).argmax(1))
    unknown = own._replace(label=torch.where(torch.arange(8) % 2 == 0, -1, own.label))
    expected, found = (solved(task, one)[1] for one in (own, unknown))
    assert torch.equal(found.x, expected.x) and torch.equal(found.objective, expected.objective)
    assert not torch.equal(solved(task, batch)[1].x, expected.x)


def test_the_figure_names_the_classes_before_and_after_beside_each_other() -> None:
    task, batch = small(radius=3.0).eval(), batch_of(14)
    task.class_names = [f"automobile{index}" for index in range(10)]
    problem, found = solved(task, batch)
    figure = task.figures(solve_exactly(problem, found), batch)["attacks"]
    before, after = (logits_of(task, image).argmax(1).tolist() for image in (batch.image, batch.image + found.x))
    labels = figure.axes[0].get_xticklabels()
    seen = [re.findall(r"automobile(\d)", label.get_text()) for label in labels]
    assert seen == [[str(one), str(other)] for one, other in zip(before, after, strict=True)][:12]
    assert before != after and len(figure.axes[0].get_images()) == 36
    FigureCanvasAgg(figure).draw()
    boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes)), "they overlap"


@pytest.mark.parametrize("inner", [Damped(max_nfe=4), Anderson(max_nfe=4)], ids=["Damped", "Anderson"])
@in_every_norm
def test_bilevel_of_the_unrolled_network_is_projected_gradient_ascent(norm: Norm, inner: FixedPointSolver) -> None:
    task, batch, lr = small(unroll=3, norm=norm, radius=RADII[norm]).eval(), batch_of(), RADII[norm] / 4
    solver = Bilevel(max_nfe=60, tol=0.0, descent=PGD(lr, norm), inner=inner)
    problem = task.problem(batch)
    found = solver.solve(problem, *task.start(batch), record=True)
    x, expected = torch.zeros_like(batch.image), []
    for _ in range(6):
        x.requires_grad_()
        loss = log_loss(logits_of(task, batch.image + x, updates=1), batch.label)
        expected.append(-loss.detach())
        (ascent,) = torch.autograd.grad(loss.sum(), x)
        direction = ascent.sign() if norm is Norm.LINF else F.normalize(ascent.flatten(1)).view_as(ascent)
        x = problem.feasible.project((x + lr * direction).detach())
    assert found.trace is not None
    # the first evaluation is of the start, which only the second has solved
    torch.testing.assert_close(found.trace.objective[1:7], torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert (expected[-1] < expected[0] - 0.1).all() and (found.objective <= expected[-1] + 1e-4).all()


IMAGE = batch_of().image
BAD_SETTINGS: dict[str, tuple[Callable[[], object], str]] = {
    "negative radius": (lambda: small(radius=-1.0), r"^radius must be 0 or larger, got -1\.0$"),
    "no attacked image": (lambda: small(attack_images=0), r"^cifar: attack_images must be at least 1, got 0$"),
    "one class": (lambda: small(classes=1), r"^classes must be at least 2, got 1$"),
    "resolution": (lambda: small(resolution=3), r"size must be a multiple of the resolution 3, got 8$"),
    "too fine": (lambda: small(resolution=16), r"size must be a multiple of the resolution 16, got 8$"),
    "unroll": (lambda: small(unroll=0), r"^unroll must be at least 1, got 0$"),
    "all clean": (lambda: Adversarial(clean_weight=1.0), r"^clean_weight .* \[0, 1\), got 1\.0; for 1 use .* Clean"),
    "less than none": (lambda: Adversarial(clean_weight=-0.1), r"^clean_weight must be in \[0, 1\), got -0\.1"),
    "NaN of the clean": (lambda: Adversarial(clean_weight=math.nan), r"^clean_weight must be in \[0, 1\), got nan"),
    "no beta": (lambda: Trades(beta=0.0), r"^beta must be larger than 0, got 0\.0$"),
}
BAD_BATCHES: dict[str, tuple[dict[str, Tensor], str]] = {
    "label": ({"label": torch.full((6,), 10)}, r"0 to 9 \(or -1 where unknown\), but the batch has 10 to 10: set"),
    "negative label": ({"label": torch.arange(6) - 2}, r"the batch has -2 to 3: set classes to"),
    "image of bytes": ({"image": 255 * IMAGE}, r"^cifar: images must be in \[0, 1\], .* from 0 to 255$"),
    "image from -1": ({"image": 2 * IMAGE - 1}, r"^cifar: images must be in \[0, 1\], .* from -1 to 1$"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings(case: str) -> None:
    make, pattern = BAD_SETTINGS[case]
    with pytest.raises(ProblemError, match=pattern):
        make()


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_bad_batches(case: str) -> None:
    fields, pattern = BAD_BATCHES[case]
    with pytest.raises(DataError, match=pattern):
        small().problem(batch_of()._replace(**fields))
