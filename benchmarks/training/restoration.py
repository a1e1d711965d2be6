"""``python -m benchmarks.training.restoration``: PSNR of restored images, gradients to theta side by side.

Every method trains the same network on the same images, measured with the same noise, by the same optimiser; the
methods differ in the adjoint and in the solver alone. Test images are restored by the solver of the training, then z is
solved exactly, as ``deqopt test`` does.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from deqopt_tasks.denoising import operators
from deqopt_tasks.denoising.data import RestorationBatch, RestorationSample
from deqopt_tasks.denoising.latent_fit import LatentFit
from deqopt_tasks.denoising.operator import measure
from deqopt_tasks.denoising.restorer import Restorer
from deqopt_tasks.denoising.task import Denoising
from torch import Tensor

from benchmarks.training.command import parsed, parser_of, run, samples_option
from benchmarks.training.joint import JointContestant, JointMethod, Recipe, sample_scores
from benchmarks.training.report import Milestone, Report, TrainingRun
from deqopt import JointModule
from deqopt.adjoints import Envelope, Implicit, InputHeld, Unrolled
from deqopt.compare import Measure
from deqopt.regularizers import JacobianPenalty
from deqopt.solvers import JointAnderson, SecantTracking, StepRule

MEASUREMENT = "the measurement"
CHUNK = 50


@dataclass(frozen=True)
class RestorationSetting:
    """What is measured, and by what it is restored.

    Attributes:
        label: in tables and pictures.
        recipe: what the methods share.
        batch: images a step.
        methods: by name; those whose gradient exists here.
    """

    label: str
    recipe: Recipe
    batch: int
    methods: Mapping[str, JointMethod]


def anderson(evaluations: int, step_size: float) -> JointAnderson:
    return JointAnderson(max_nfe=evaluations, step_size=step_size, step_rule=StepRule.PLAIN, history_size=5)


TRACKING = SecantTracking(max_nfe=16, step_size=2.0)
SETTINGS = {
    "latent": RestorationSetting(
        label="latent fit, noise 0.6",
        recipe=Recipe(
            lr=3e-3,
            clip=0.1,
            penalty=JacobianPenalty(weight=0.2, visits=1),
            task={
                "prior": LatentFit(latent=32, widths=[24, 32], weight=0.1),
                "operator": operators.Denoising(0.6),
                "size": 32,
                "image_channels": 1,
            },
        ),
        batch=16,
        methods={
            "envelope": JointMethod("Envelope", TRACKING, Envelope()),
            "held": JointMethod("InputHeld", TRACKING, InputHeld(tol=1e-2, max_nfe=20)),
            "implicit": JointMethod("Implicit", anderson(32, 0.05), Implicit(tol=0.1, max_nfe=40)),
            "unrolled": JointMethod("Unrolled", anderson(8, 0.05), Unrolled()),
        },
    ),
    "restorer": RestorationSetting(
        label="restorer, noise 0.2",
        recipe=Recipe(
            lr=1e-3,
            clip=0.1,
            penalty=JacobianPenalty(weight=0.5),
            task={
                "prior": Restorer(widths=[64]),
                "operator": operators.Denoising(0.2),
                "size": 32,
                "image_channels": 1,
            },
        ),
        batch=8,
        methods={  # InputHeld holds the image that the restorer optimises, so it has no gradient here.
            "envelope": JointMethod("Envelope", anderson(6, 0.3), Envelope()),
            "implicit": JointMethod("Implicit", anderson(24, 0.1), Implicit(tol=0.1, max_nfe=30)),
            "unrolled": JointMethod("Unrolled", anderson(6, 0.3), Unrolled()),
        },
    ),
}
METHODS = {name: method.label for setting in SETTINGS.values() for name, method in setting.methods.items()}
PSNR = Measure("psnr", "PSNR in dB")
REPORT = Report([PSNR, Measure("ssim", "SSIM", digits=3)], [*METHODS.values(), MEASUREMENT], "images")


class TrainingDraws:
    """Clean training images, drawn at random, half of them mirrored, and measured anew.

    Args:
        task: whose images, and by whose operator.
        count: images a batch.
        seed: of all this.
    """

    def __init__(self, task: Denoising, count: int, seed: int) -> None:
        self._task, self._count = task, count
        self._clean = torch.stack([task.data.source[row].image for row in task.data.splits.train])
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> RestorationBatch:
        generator = self._generator
        rows = torch.randint(len(self._clean), (self._count,), generator=generator)
        mirrored = torch.rand(self._count, generator=generator) < 0.5
        samples = []
        for row, flip in zip(rows.tolist(), mirrored.tolist(), strict=True):
            clean = self._clean[row].flip(2) if flip else self._clean[row]
            samples.append(RestorationSample(clean, *measure(self._task.operator, clean, generator), row))
        batch: RestorationBatch = self._task.data.collate(training=True)(samples)
        return batch


def tested(task: Denoising, chosen: argparse.Namespace) -> list[RestorationBatch]:
    """Images that were not trained on, with the measurements that the task gives them, the same in every run."""
    rows = (task.data.splits.val if chosen.validate else task.data.splits.test)[: chosen.images]
    samples = task.data.samples(rows)
    chunks = [range(first, min(first + CHUNK, len(rows))) for first in range(0, len(rows), CHUNK)]
    return [task.data.collate(training=False)([samples[k] for k in chunk]) for chunk in chunks]


def restored(batches: Sequence[RestorationBatch], module: JointModule) -> dict[str, list[float]]:
    """PSNR and SSIM of every image."""
    solved = [module.predict_step(batch, 0)["equilibrium"] for batch in batches]
    return sample_scores(module.task, [module.task.outcome(*pair) for pair in zip(solved, batches, strict=True)])


def contestant(
    setting: RestorationSetting, method: JointMethod, seed: int, chosen: argparse.Namespace
) -> JointContestant:
    task = task_of(setting, chosen)
    draw = TrainingDraws(task, setting.batch, seed)
    return JointContestant(task, method, setting.recipe, draw, partial(restored, tested(task, chosen)))


def task_of(setting: RestorationSetting, chosen: argparse.Namespace) -> Denoising:
    root = None if chosen.root is None else str(chosen.root)
    settings: dict[str, Any] = dict(setting.recipe.task)
    return Denoising(root=root, groups=chosen.groups, **settings)


def measurement(setting: RestorationSetting, chosen: argparse.Namespace) -> dict[str, list[float]]:
    """What the measurement itself reaches."""
    task = task_of(setting, chosen)
    pairs: list[tuple[Tensor, Tensor]] = [
        (task.estimate(batch).clamp(0, 1), batch.clean) for batch in tested(task, chosen)
    ]
    return sample_scores(task, pairs)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = parser_of("restoration", __doc__, METHODS, list(METHODS), [0, 1, 2])
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="%(default)s")
    parser.add_argument("--groups", help="array in the .npz whose equal entries stay in one split, such as subject")
    samples_option(parser, "--images", 200, "the most that are restored")
    chosen = parsed(parser, argv)
    for method in chosen.methods:
        if not any(method in SETTINGS[name].methods for name in chosen.setting):
            known = "; ".join(f"{name} has {', '.join(SETTINGS[name].methods)}" for name in chosen.setting)
            parser.error(f"argument --methods: no chosen setting has {method}: {known}")
    return chosen


def scene_of(setting: RestorationSetting, chosen: argparse.Namespace) -> str:
    data = "photographs" if chosen.root is None else chosen.root.stem
    data += f" by {chosen.groups}" if chosen.groups else ""
    part = "validation" if chosen.validate else "test"
    return f"{setting.label}, at most {chosen.images} {part} images of {data}, {chosen.seconds:g} s"


def main(argv: Sequence[str] | None = None) -> None:
    chosen = arguments(argv)
    for seed in chosen.seeds:
        for name in chosen.setting:
            setting = SETTINGS[name]
            scene = scene_of(setting, chosen)
            methods = {
                method.label: partial(contestant, setting, method, seed, chosen)
                for name, method in setting.methods.items()
                if name in chosen.methods
            }
            run(scene, seed, chosen.seconds, methods, chosen.out, PSNR)
            if methods:
                scores = measurement(setting, chosen)
                TrainingRun(scene, MEASUREMENT, seed, [Milestone(0.0, 0, scores)]).write(chosen.out)
    print(REPORT.write(chosen.out))


if __name__ == "__main__":
    main()
