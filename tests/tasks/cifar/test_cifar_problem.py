"""The task cifar: its losses, its joint problem and the gradient of what it learns, its classifier, what it refuses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from deqopt_tasks.cifar.catalogue import AttackName
from deqopt_tasks.cifar.classifier import Classifier
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

SETTINGS: dict[str, Any] = {
    "size": 8,
    "image_channels": 1,
    "widths": [8],
    "resolution": 4,
    "attacks": [AttackName.SOLVERS],
}
RADII = {Norm.L2: 0.5, Norm.LINF: 0.1}
SOLVER = SecantTracking(max_nfe=8, step_size=2.0)


def small(**settings: Any) -> Cifar:
    torch.manual_seed(0)
    return Cifar(**{**SETTINGS, **settings})


def batch_of(count: int = 6, classes: int = 10, dtype: torch.dtype = torch.float32) -> ImageBatch:
    """Random images, a quarter of whose pixels are black and a quarter white."""
    noise = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return ImageBatch((2 * noise - 0.5).clamp(0, 1), torch.arange(count) % classes, torch.arange(count))


def digits(count: int) -> ImageBatch:
    """Digits to learn, in a task's own batch."""
    data = small(batch_size=count).datamodule()
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def solved(task: Cifar, batch: ImageBatch, solver: JointSolver = SOLVER) -> tuple[JointProblem, Equilibrium]:
    problem = task.problem(batch)
    return problem, solver.solve(problem, *task.start(batch), adjoint=Envelope())


def logits_of(task: Cifar, images: Tensor, updates: int = 100) -> Tensor:
    """By plain updates from zero; differentiable."""
    z = task.classifier.start(images)
    for _ in range(updates):
        z = task.classifier.f(z, images)
    return task.classifier.logits(z)


# -- the losses -------------------------------------------------------------------------------------------------------


def log_loss(logits: Tensor, label: Tensor) -> Tensor:
    return -logits.log_softmax(1).gather(1, label[:, None])[:, 0]


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
        Trades(beta=4.0),
        lambda clean, attacked, label: (
            log_loss(clean, label) + 4 * F.kl_div(attacked.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
        ),
    ),
}
of_every_kind = pytest.mark.parametrize("kind", KINDS)
in_every_norm = pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF], ids=lambda norm: norm.name)


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


def test_trades_of_images_that_are_not_attacked_is_their_cross_entropy() -> None:
    logits, label = torch.randn(5, 4), torch.arange(5) % 4
    torch.testing.assert_close(
        Trades(beta=6.0).of(logits, label, logits), F.cross_entropy(logits, label, reduction="none")
    )
    attacked = logits + torch.randn(5, 4)
    assert (Trades(beta=6.0).of(attacked, label, logits) > Trades(beta=1.0).of(attacked, label, logits)).all()


BAD_LOSSES: dict[str, tuple[Callable[[], object], str]] = {
    "all clean": (
        lambda: Adversarial(clean_weight=1.0),
        r"clean_weight .* \[0, 1\), got 1\.0; for 1 use the loss Clean",
    ),
    "less than none": (lambda: Adversarial(clean_weight=-0.1), r"clean_weight must be in \[0, 1\), got -0\.1"),
    "NaN": (lambda: Adversarial(clean_weight=math.nan), r"clean_weight must be in \[0, 1\), got nan"),
    "no beta": (lambda: Trades(beta=0.0), r"^beta must be larger than 0, got 0\.0$"),
    "NaN beta": (lambda: Trades(beta=math.nan), r"^beta must be larger than 0, got nan$"),
}


@pytest.mark.parametrize("case", BAD_LOSSES)
def test_losses_that_cannot_be_meant(case: str) -> None:
    make, pattern = BAD_LOSSES[case]
    with pytest.raises(ProblemError, match=pattern):
        make()


# -- the problem of training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "norm", "unroll"),
    # one half of the product, in which every pair of two of the three occurs
    [case for i, case in enumerate(product(KINDS, RADII, (None, 3))) if (i + i // 2 + i // 4) % 2 == 0],
)
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
        found = value(optimum().x).mean().item()
        with torch.no_grad():
            for parameter, part in zip(task.parameters(), direction, strict=True):
                parameter.sub_(step * part)
        return found

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
    assert slope == pytest.approx((moved(step) - moved(-step)) / (2 * step), rel=2e-3)


def learned(task: Cifar, batch: ImageBatch, steps: int) -> list[float]:
    """Trains on one batch, with a penalty that keeps f contracting; the losses."""
    optimiser, penalty, losses = torch.optim.Adam(task.parameters(), 1e-2), SpectralPenalty(), []
    for _ in range(steps):
        optimiser.zero_grad()
        problem, found = solved(task.train(), batch)
        loss = task.loss(found, batch).mean()
        (loss + penalty.penalty(problem, found)).backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@of_every_kind
def test_training_lowers_the_loss(kind: str) -> None:
    batch = digits(24)
    untrained, task = (small(loss=KINDS[kind].loss) for _ in range(2))
    losses = learned(task, batch, steps=16)
    assert losses[-1] < 0.7 * losses[0]
    before, after = (one.loss(solve_exactly(*solved(one.train(), batch)), batch).mean() for one in (untrained, task))
    assert after < 0.8 * before


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


# -- the problem of evaluation ----------------------------------------------------------------------------------------


@of_every_kind
def test_evaluation_is_under_attack_whatever_the_loss(kind: str) -> None:
    task, plain, batch = small(loss=KINDS[kind].loss).eval(), small().eval(), batch_of()
    found, expected = (solve_exactly(*solved(one, batch)) for one in (task, plain))
    assert torch.equal(found.x, expected.x) and torch.equal(found.objective, expected.objective)
    values = log_loss(logits_of(task, batch.image + found.x), batch.label)
    torch.testing.assert_close(task.loss(found, batch), values, rtol=1e-3, atol=1e-4)
    assert not torch.equal(solved(task.train(), batch)[1].x, expected.x) or kind == "adversarial"


@pytest.mark.parametrize("kind", ["adversarial", "clean"])
def test_confidence_is_no_robustness_for_the_solver_that_trains(kind: str) -> None:
    """Logits times 100, as long training without attacks may make them: no decision changes."""
    batch = digits(32)
    task = small(loss=KINDS[kind].loss, radius=1.25)
    learned(task, batch, steps=15)
    clean, robust = accuracies(task, batch)
    assert 0 < robust < clean
    left = set()
    for confidence in (10, 30, 100):
        sure = small(loss=KINDS[kind].loss, radius=1.25)
        sure.load_state_dict(task.state_dict())
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
    batch, robust = digits(32), {}
    for kind in ("adversarial", "clean"):
        task = small(loss=KINDS[kind].loss, radius=1.25)
        learned(task, batch, steps=15)
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
    labels = [axes.xaxis.label for axes in figure.axes if axes.get_xlabel()]
    seen = [re.findall(r"automobile(\d)", label.get_text()) for label in labels]
    assert seen == [[str(one), str(other)] for one, other in zip(before, after, strict=True)][:12]
    assert before != after and len(figure.axes) == 36
    FigureCanvasAgg(figure).draw()
    boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes)), "they overlap"


# -- the classifier ---------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("inner", [Damped(max_nfe=4), Anderson(max_nfe=4)], ids=lambda inner: type(inner).__name__)
@in_every_norm
def test_bilevel_on_the_unrolled_network_is_plain_projected_gradient_ascent(
    norm: Norm, inner: FixedPointSolver
) -> None:
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
        direction = ascent.sign() if norm is Norm.LINF else ascent / ascent.flatten(1).norm(dim=1)[:, None, None, None]
        x = problem.feasible.project((x + lr * direction).detach())
    assert found.trace is not None
    # the first evaluation is of the start, which only the second has solved
    torch.testing.assert_close(found.trace.objective[1:7], torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert (expected[-1] < expected[0] - 0.1).all() and (found.objective <= expected[-1] + 1e-4).all()


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


# -- what is refused --------------------------------------------------------------------------------------------------


def changed(**fields: Tensor) -> Callable[[], object]:
    return lambda: small().problem(batch_of()._replace(**fields))


def setup(**settings: Any) -> None:
    small(**settings).datamodule().setup("fit")


IMAGE = batch_of().image
BAD: dict[str, tuple[type[Exception], Callable[[], object], str]] = {
    "negative radius": (ProblemError, lambda: small(radius=-1.0), r"^radius must be 0 or larger, got -1\.0$"),
    "NaN radius": (ProblemError, lambda: small(radius=math.nan), r"^radius must be 0 or larger, got nan$"),
    "one class": (ProblemError, lambda: small(classes=1), r"^classes must be at least 2, got 1$"),
    "resolution": (ProblemError, lambda: small(resolution=3), r"size must be a multiple of the resolution 3, got 8$"),
    "too fine": (ProblemError, lambda: small(resolution=16), r"size must be a multiple of the resolution 16, got 8$"),
    "branches": (ProblemError, lambda: small(widths=[4] * 4), r"must be a multiple of 8; got 4$"),
    "no width": (ProblemError, lambda: small(widths=[]), r"one a branch, got \[\]$"),
    "unroll": (
        ProblemError,
        lambda: small(unroll=0),
        r"^unroll must be at least 1, got 0$",
    ),
    "label": (
        DataError,
        changed(label=torch.full((6,), 10)),
        r"^cifar: labels must be 0 to 9 \(or -1 where unknown\), but the batch has 10 to 10: set classes to",
    ),
    "negative label": (DataError, changed(label=torch.arange(6) - 2), r"the batch has -2 to 3: set classes to"),
    "image of bytes": (DataError, changed(image=255 * IMAGE), r"^cifar: images must be in \[0, 1\], .* from 0 to 255$"),
    "image from -1": (DataError, changed(image=2 * IMAGE - 1), r"^cifar: images must be in \[0, 1\], .* from -1 to 1$"),
    "classes of the data": (
        DataError,
        lambda: setup(classes=7),
        r"has 10 classes, .* but classes is 7: set classes to 10$",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_and_data(case: str) -> None:
    kind, action, pattern = BAD[case]
    with pytest.raises(kind, match=pattern) as caught:
        action()
    assert "\n" not in str(caught.value)
