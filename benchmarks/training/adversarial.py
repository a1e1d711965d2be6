"""``python -m benchmarks.training.adversarial``: robust accuracy, joint training beside PGD training.

Every method trains the same network on the same images with the same optimiser; the methods differ in the solver alone.
Attacks are those of torchattacks, on test images at exact equilibria.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from deqopt_tasks.cifar.gradients import ExactClassifier
from deqopt_tasks.cifar.losses import Clean
from deqopt_tasks.cifar.task import Cifar
from deqopt_tasks.cifar.torch_attacks import PGD

from benchmarks.training.command import parsed, parser_of, run, samples_option
from benchmarks.training.joint import JointContestant, JointMethod, Recipe
from benchmarks.training.report import Report
from deqopt import JointModule
from deqopt.compare import Measure
from deqopt.data import Download, ImageBatch
from deqopt.fixed_point import Anderson
from deqopt.loop_settings import Norm
from deqopt.regularizers import SpectralPenalty
from deqopt.solvers import PGD as SteepestDescent
from deqopt.solvers import Bilevel, SecantTracking

RADIUS = 1.5
BATCH = 48
CHUNK = 100
RECIPE = Recipe(
    lr=4e-3,
    clip=1.0,
    penalty=SpectralPenalty(weight=1.0),
    task={"size": 28, "image_channels": 1, "widths": [16, 24], "resolution": 14, "norm": Norm.L2, "radius": RADIUS},
)


def pgd(steps: int, evaluations: int, warm: bool) -> Bilevel:
    """Steps of PGD in L2 whose lengths add up to 2.5 radii, as its authors have them. Each has solves for z and mu
    of at most ``evaluations``."""
    descent = SteepestDescent(lr=2.5 * RADIUS / steps, norm=Norm.L2)
    inner = Anderson(max_nfe=evaluations, tol=1e-2)
    return Bilevel(max_nfe=1 + (evaluations + 2) * (steps + 1), descent=descent, inner=inner, warm=warm)


METHODS = {
    "joint": JointMethod(
        "joint (SecantTracking, 8 evaluations)", SecantTracking(max_nfe=8, step_size=RADIUS, decay=0.5)
    ),
    "pgd": JointMethod("PGD, 7 steps, each solved anew", pgd(steps=7, evaluations=12, warm=False)),
    "warm": JointMethod("PGD, 2 steps, warm-started solves of 2", pgd(steps=2, evaluations=2, warm=True)),
    "warm5": JointMethod("PGD, 5 steps, warm-started solves of 3", pgd(steps=5, evaluations=3, warm=True)),
    "clean": JointMethod("no attacks in training", SecantTracking(max_nfe=8, step_size=RADIUS), task={"loss": Clean()}),
    "unrolled": JointMethod(
        "8 layers with tied weights, PGD, 5 steps", pgd(steps=5, evaluations=2, warm=True), task={"unroll": 8}
    ),
}
ROBUST = Measure("robust", f"robust accuracy in %, PGD of 50 steps, L2 radius {RADIUS:g}", factor=100, digits=1)
REPORT = Report(
    [ROBUST, Measure("clean", "clean accuracy in %", factor=100, digits=1)],
    [method.label for method in METHODS.values()],
    "images",
)


def images_of(task: Cifar, rows: Sequence[int]) -> ImageBatch:
    """Images (N, 1, 28, 28) in [0, 1], their labels and indices."""
    batch: ImageBatch = task.data.collate(training=False)([task.data.source[row] for row in rows])
    return batch


def drawn(images: ImageBatch, generator: torch.Generator) -> ImageBatch:
    """A batch at random."""
    rows = torch.randint(len(images.label), (BATCH,), generator=generator)
    return ImageBatch(*(part[rows] for part in images))


def accuracies(images: ImageBatch, module: JointModule) -> dict[str, list[float]]:
    """Which images are classified correctly at their exact equilibria, as they are and under attack. The attack's
    gradients are solved to 1e-3."""
    task: Any = module.task
    exact = ExactClassifier(task.classifier)
    attacked = ExactClassifier(task.classifier, solver=Anderson(max_nfe=60, tol=1e-3))
    correct: dict[str, list[float]] = {"robust": [], "clean": []}
    for image, label in zip(images.image.split(CHUNK), images.label.split(CHUNK), strict=True):
        found = PGD(steps=50).perturbed(attacked, image, label, task.threat)
        for name, seen in (("clean", image), ("robust", found)):
            correct[name] += (exact.predict(seen).label == label).float().tolist()
    return correct


def contestant(method: JointMethod, seed: int, chosen: argparse.Namespace) -> JointContestant:
    root, download = chosen.root and str(chosen.root), Download.MNIST if chosen.download else None
    settings: dict[str, Any] = {**RECIPE.task, **method.task}
    task = Cifar(root=root, download=download, **settings)
    splits = task.data.splits
    tested = images_of(task, (splits.val if chosen.validate else splits.test)[: chosen.images])
    draw = partial(drawn, images_of(task, splits.train), torch.Generator().manual_seed(seed))
    return JointContestant(task, method, RECIPE, draw, partial(accuracies, tested))


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = parser_of("adversarial", __doc__, METHODS, ["joint", "pgd", "warm5"], [0, 1, 2])
    parser.add_argument("--download", action="store_true", help="let torchvision download or unpack MNIST to --root")
    samples_option(parser, "--images", 300, "the most that are attacked")
    return parsed(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    chosen = arguments(argv)
    data, part = "digits" if chosen.root is None else "MNIST", "validation" if chosen.validate else "test"
    scene = f"at most {chosen.images} {part} images of {data}, {chosen.seconds:g} s"
    for seed in chosen.seeds:
        methods = {METHODS[name].label: partial(contestant, METHODS[name], seed, chosen) for name in chosen.methods}
        run(scene, seed, chosen.seconds, methods, chosen.out, ROBUST)
    print(REPORT.write(chosen.out))


if __name__ == "__main__":
    main()
