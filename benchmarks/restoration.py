"""``python -m benchmarks.restoration``: PSNR of restored images against training time, gradients to theta side by side.

Every method trains the same network on the same images, measured with the same noise, by the same optimiser, its
learning rate a function of the share of the time that is spent; the methods differ in the adjoint and in the solver
alone. Time is that of one core, which other work on the machine does not stretch. Test images are restored by the
solver of the training, then z is solved exactly.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time

import torch
from deqopt_tasks.denoising import operators
from deqopt_tasks.denoising.data import RestorationBatch, RestorationSample
from deqopt_tasks.denoising.latent_fit import LatentFit
from deqopt_tasks.denoising.operator import MeasurementOperator, measure
from deqopt_tasks.denoising.prior import PriorFamily
from deqopt_tasks.denoising.restorer import Restorer
from deqopt_tasks.denoising.task import Denoising
from torch import Tensor, nn
from torchmetrics import MetricCollection

from benchmarks.restoration_report import write
from benchmarks.schedule import shape
from benchmarks.timed import Backward, Race, Snapshot, write_run
from deqopt.adjoints import Adjoint, Envelope, Implicit, InputHeld, Unrolled
from deqopt.equilibrium import BackwardReport
from deqopt.errors import NonFiniteError
from deqopt.regularizers import JacobianPenalty
from deqopt.solvers import JointAnderson, JointSolver, SecantTracking, StepRule, solve_exactly
from deqopt.weights import cached_weights

CHUNK = 50


@dataclass(frozen=True)
class Method:
    """A gradient to theta, and the solver that it is taken at; their settings were chosen on validation images."""

    adjoint: Adjoint
    solver: JointSolver


@dataclass(frozen=True)
class Setting:
    """What is measured, what is trained, and the methods, which share everything else.

    Attributes:
        label: in the figure and in tables.
        prior: the family of the network.
        operator: measures the images.
        methods: by name; those whose gradient exists here.
        lr: the highest learning rate of Adam.
        clip: the largest norm of a gradient to theta.
        penalty: added to the loss.
        size: height and width of the images.
        channels: of the images.
        batch: images a step.
    """

    label: str
    prior: PriorFamily
    operator: MeasurementOperator
    methods: Mapping[str, Method]
    lr: float
    clip: float
    penalty: JacobianPenalty
    size: int = 32
    channels: int = 1
    batch: int = 16

    def task(self, root: Path | None, groups: str | None) -> Denoising:
        return Denoising(
            root=None if root is None else str(root),
            groups=groups,
            size=self.size,
            image_channels=self.channels,
            batch_size=self.batch,
            operator=self.operator,
            prior=self.prior,
        )


TRACKING = SecantTracking(max_nfe=16, step_size=2.0)
SETTINGS = {
    "latent": Setting(
        label="latent fit, noise 0.6",
        prior=LatentFit(latent=32, widths=[24, 32], weight=0.1),
        operator=operators.Denoising(0.6),
        methods={
            "envelope": Method(Envelope(), TRACKING),
            "held": Method(InputHeld(tol=1e-2, max_nfe=20), TRACKING),
            "implicit": Method(
                Implicit(tol=0.1, max_nfe=40),
                JointAnderson(max_nfe=32, step_size=0.05, step_rule=StepRule.PLAIN, history_size=5),
            ),
            "unrolled": Method(
                Unrolled(), JointAnderson(max_nfe=8, step_size=0.05, step_rule=StepRule.PLAIN, history_size=5)
            ),
        },
        lr=3e-3,
        clip=0.1,
        penalty=JacobianPenalty(weight=0.2, visits=1),
    ),
    "restorer": Setting(
        label="restorer, noise 0.2",
        prior=Restorer(widths=[64]),
        operator=operators.Denoising(0.2),
        methods={
            "envelope": Method(
                Envelope(), JointAnderson(max_nfe=6, step_size=0.3, step_rule=StepRule.PLAIN, history_size=5)
            ),
            "implicit": Method(
                Implicit(tol=0.1, max_nfe=30),
                JointAnderson(max_nfe=24, step_size=0.1, step_rule=StepRule.PLAIN, history_size=5),
            ),
            "unrolled": Method(
                Unrolled(), JointAnderson(max_nfe=6, step_size=0.3, step_rule=StepRule.PLAIN, history_size=5)
            ),
        },
        lr=1e-3,
        clip=0.1,
        penalty=JacobianPenalty(weight=0.5),
        batch=8,
    ),
}
"""InputHeld holds the image that the restorer optimises, so it has no gradient there."""
GRADIENTS = {
    name: type(method.adjoint).__name__ for setting in SETTINGS.values() for name, method in setting.methods.items()
}
"""The methods by name, as they are called in the figure and in tables."""


@dataclass(frozen=True)
class Quality:
    """Means over images that are cut to [0, 1].

    Attributes:
        psnr: ``10 log10(4 / mse)`` of an image, in dB.
        ssim: structural similarity.
    """

    psnr: float
    ssim: float


@dataclass(frozen=True)
class Mark:
    """What a network restores after some training: see :class:`Snapshot`, :class:`Quality` and :class:`Backward`."""

    seconds: float
    steps: int
    psnr: float
    ssim: float
    backward: Backward | None


@dataclass(frozen=True)
class Images:
    """Clean images (N, channels, size, size) in [0, 1], to be measured as a task says."""

    task: Denoising
    clean: Tensor

    @classmethod
    def of(cls, task: Denoising, rows: Sequence[int]) -> Images:
        return cls(task, torch.stack([task.data.source[row].image for row in rows]))

    def draw(self, count: int, generator: torch.Generator) -> RestorationBatch:
        """Some of them, half of them mirrored, with new measurements."""
        rows = torch.randint(len(self.clean), (count,), generator=generator)
        mirrored = torch.rand(count, generator=generator) < 0.5
        samples = []
        for row, flip in zip(rows.tolist(), mirrored.tolist(), strict=True):
            clean = self.clean[row].flip(2) if flip else self.clean[row]
            samples.append(RestorationSample(clean, *measure(self.task.operator, clean, generator), row))
        batch: RestorationBatch = self.task.data.collate(training=True)(samples)
        return batch


def train(
    task: Denoising, setting: Setting, method: Method, seconds: float, seed: int
) -> list[tuple[Snapshot, Backward | None]]:
    """Train in place for ``seconds`` of one core; snapshots, and how backward systems were solved until then.

    Raises:
        NonFiniteError: the training has diverged.
    """
    images = Images.of(task, task.data.splits.train)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(task.parameters())
    penalty = setting.penalty
    task.train()
    race = Race(seconds, clock=process_time)
    snapshots: list[tuple[Snapshot, Backward | None]] = []
    reports: list[BackwardReport] = []
    while race.runs:
        with race.step():
            for group in optimizer.param_groups:
                group["lr"] = setting.lr * shape(race.share)
            batch = images.draw(setting.batch, generator)
            with cached_weights(task):
                problem = task.problem(batch)
                start = task.start(batch)
                equilibrium = method.solver.solve(problem, *start, adjoint=method.adjoint, visits=penalty.visits)
                loss = task.loss(equilibrium, batch).mean() + penalty.weight * penalty.penalty(problem, equilibrium)
                optimizer.zero_grad()
                loss.backward()
            norm = nn.utils.clip_grad_norm_(task.parameters(), setting.clip)
            if not (loss.isfinite() and norm.isfinite()):
                raise NonFiniteError(
                    f"training with {type(method.adjoint).__name__} ({setting.label}, seed {seed}) has diverged in "
                    f"step {race.steps + 1}: lower lr or clip of the setting, or raise its penalty"
                )
            optimizer.step()
        report = equilibrium.backward
        if report is not None and report.residual is not None:  # Unrolled solves no linear system
            reports.append(report)
        snapshots += [(snapshot, Backward.of_steps(reports)) for snapshot in race.passed(task)]
    return snapshots


def mark(
    task: Denoising,
    solver: JointSolver,
    snapshot: Snapshot,
    backward: Backward | None,
    batches: Sequence[RestorationBatch],
) -> Mark:
    """What is restored by a solve from the start and z solved exactly for its x, as ``deqopt test`` does."""
    task.load_state_dict(snapshot.weights)

    def restored(batch: RestorationBatch) -> Tensor:
        with cached_weights(task):
            problem = task.problem(batch)
            exact = solve_exactly(problem, solver.solve(problem, *task.start(batch)))
            return task.restored(exact)

    found = quality(task, restored, batches)
    return Mark(round(snapshot.seconds, 1), snapshot.steps, found.psnr, found.ssim, backward)


def quality(
    task: Denoising, restore: Callable[[RestorationBatch], Tensor], batches: Sequence[RestorationBatch]
) -> Quality:
    """By the metrics of the task."""
    metrics = MetricCollection(dict(task.metrics()))
    for batch in batches:
        metrics.update(restore(batch).detach().clamp(0, 1), batch.clean)
    return Quality(**{name: float(value) for name, value in metrics.compute().items()})


def measured(task: Denoising, rows: list[int]) -> list[RestorationBatch]:
    """Images of the source with the measurements that the task gives them, which are the same in every run."""
    samples = task.data.samples(rows)
    chunks = [range(first, min(first + CHUNK, len(rows))) for first in range(0, len(rows), CHUNK)]
    return [task.data.collate(training=False)([samples[k] for k in chunk]) for chunk in chunks]


def run(name: str, gradient: str, seed: int, chosen: argparse.Namespace) -> None:
    """Train and test one network, unless its file is there."""
    part = "validation" if chosen.validate else "test"
    data = "photographs" if chosen.root is None else chosen.root.stem
    data += f"-{chosen.groups}" if chosen.groups else ""
    path = chosen.out / f"{name}-{gradient}-{part}-{data}-{chosen.seconds:g}s-{seed}.json"
    if path.exists():
        return
    setting, method = SETTINGS[name], SETTINGS[name].methods[gradient]
    torch.manual_seed(seed)
    task = setting.task(chosen.root, chosen.groups)
    print(
        f"{setting.label}, {data}: training with {GRADIENTS[gradient]}, seed {seed}, {chosen.seconds:g} s", flush=True
    )
    with warnings.catch_warnings():
        # They are counted: see Backward.unsolved.
        warnings.filterwarnings("ignore", message="Implicit: the backward solve")
        snapshots = train(task, setting, method, chosen.seconds, seed)
    task.eval()
    splits = task.data.splits
    rows = (splits.val if chosen.validate else splits.test)[: chosen.images]
    batches = measured(task, rows)
    marks = [mark(task, method.solver, snapshot, backward, batches) for snapshot, backward in snapshots]
    measurement = quality(task, task.estimate, batches)
    for one in marks:
        print(f"  {one.seconds:.0f} s, {one.steps} steps: {one.psnr:.2f} dB, SSIM {one.ssim:.3f}", flush=True)
    said = {"setting": name, "method": gradient, "seed": seed, "budget": chosen.seconds, "data": data, "part": part}
    found = {"images": len(rows), "measurement": asdict(measurement), "marks": [asdict(one) for one in marks]}
    write_run(path, {**said, **found})


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restoration", description=__doc__)
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="%(default)s")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=GRADIENTS,
        default=list(GRADIENTS),
        help="each in the chosen settings that have it (%(default)s)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of weights and batches (%(default)s)")
    parser.add_argument("--seconds", type=float, default=180.0, help="of training on one core (%(default)s)")
    parser.add_argument("--root", type=Path, help="folder of images or .npz with images; else embedded photographs")
    parser.add_argument("--groups", help="array in the .npz whose equal entries stay in one split, such as subject")
    parser.add_argument("--images", type=int, default=200, help="the most that are restored (%(default)s)")
    parser.add_argument("--validate", action="store_true", help="restore validation images: to choose settings with")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "restoration", help="%(default)s")
    chosen = parser.parse_args(argv)
    if not chosen.seconds > 0 or chosen.images < 1:
        parser.error(f"--seconds must be larger than 0 and --images 1 or more, got {chosen.seconds:g}, {chosen.images}")
    for method in chosen.methods:
        if not any(method in SETTINGS[name].methods for name in chosen.setting):
            known = "; ".join(f"{name} has {', '.join(SETTINGS[name].methods)}" for name in chosen.setting)
            parser.error(f"argument --methods: no chosen setting has {method}: {known}")
    return chosen


def main(argv: Sequence[str] | None = None) -> None:
    chosen = arguments(argv)
    torch.set_num_threads(1)
    for seed in chosen.seeds:
        for name in chosen.setting:
            for gradient in chosen.methods:
                if gradient in SETTINGS[name].methods:
                    run(name, gradient, seed, chosen)
    print(write(chosen.out, {name: setting.label for name, setting in SETTINGS.items()}, GRADIENTS))


if __name__ == "__main__":
    main()
