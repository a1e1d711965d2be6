"""``python -m benchmarks.adversarial``: robust accuracy against training time, joint training beside PGD training.

Every method trains the same network on the same images with the same optimiser, its learning rate a function of the
share of the time that is spent; the methods differ in the solver alone. Time is that of one core, which other work on
the machine does not stretch. Attacks are those of torchattacks, on test images at exact equilibria.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from deqopt_tasks.cifar.gradients import ExactClassifier
from deqopt_tasks.cifar.losses import Clean
from deqopt_tasks.cifar.task import Cifar
from deqopt_tasks.cifar.torch_attacks import PGD
from torch import Tensor, nn

from benchmarks.adversarial_report import write
from benchmarks.schedule import shape
from benchmarks.timed import CURVE, Race, Snapshot, write_run
from deqopt.adjoints import Envelope
from deqopt.data import Download, LabelledBatch
from deqopt.fixed_point import Anderson
from deqopt.iteration import Norm
from deqopt.regularizers import SpectralPenalty
from deqopt.solvers import PGD as SteepestDescent
from deqopt.solvers import Bilevel, JointSolver, SecantTracking
from deqopt.weights import cached_weights

RADIUS = 1.5
BATCH = 48
HIGHEST_LR = 4e-3
PENALTY = 1.0
CHUNK = 100


@dataclass(frozen=True)
class Method:
    """A way to find the perturbations that the network is trained on.

    Attributes:
        label: in the figure and in tables.
        solver: with its settings, which were chosen on validation images.
        clean: train on the images as they are.
        unroll: depth of the weight-tied feed-forward network in the place of the equilibrium.
    """

    label: str
    solver: JointSolver
    clean: bool = False
    unroll: int | None = None

    def task(self, root: Path | None, download: Download | None) -> Cifar:
        return Cifar(
            root=None if root is None else str(root),
            download=download,
            size=28,
            image_channels=1,
            widths=[16, 24],
            resolution=14,
            unroll=self.unroll,
            norm=Norm.L2,
            radius=RADIUS,
            loss=Clean() if self.clean else None,
        )


def steepest(steps: int) -> SteepestDescent:
    """Steps of PGD in L2 whose lengths add up to 2.5 radii, as its authors have them."""
    return SteepestDescent(lr=2.5 * RADIUS / steps, norm=Norm.L2)


def bilevel(steps: int, evaluations: int, warm: bool) -> Bilevel:
    """``steps`` steps, each with solves for z and mu of at most ``evaluations``."""
    inner = Anderson(max_nfe=evaluations, tol=1e-2)
    return Bilevel(max_nfe=1 + (evaluations + 2) * (steps + 1), descent=steepest(steps), inner=inner, warm=warm)


METHODS = {
    "joint": Method("joint (SecantTracking, 8 evaluations)", SecantTracking(max_nfe=8, step_size=RADIUS, decay=0.5)),
    "pgd": Method("PGD, 7 steps, each solved anew", bilevel(steps=7, evaluations=12, warm=False)),
    "warm": Method("PGD, 2 steps, warm-started solves of 2", bilevel(steps=2, evaluations=2, warm=True)),
    "warm5": Method("PGD, 5 steps, warm-started solves of 3", bilevel(steps=5, evaluations=3, warm=True)),
    "clean": Method("no attacks in training", SecantTracking(max_nfe=8, step_size=RADIUS), clean=True),
    "unrolled": Method("8 layers with tied weights, PGD, 5 steps", bilevel(5, 2, warm=True), unroll=8),
}


@dataclass(frozen=True)
class Images:
    """Images (N, 1, 28, 28) in [0, 1] and their labels (N,)."""

    image: Tensor
    label: Tensor

    @classmethod
    def of(cls, task: Cifar, rows: Sequence[int]) -> Images:
        samples = [task.data.source[row] for row in rows]
        return cls(torch.stack([one.image for one in samples]), torch.tensor([one.label for one in samples]))

    def draw(self, count: int, generator: torch.Generator) -> LabelledBatch:
        rows = torch.randint(len(self.label), (count,), generator=generator)
        return LabelledBatch(self.image[rows], self.label[rows], rows)


@dataclass(frozen=True)
class Mark:
    """What a network withstands after some training.

    Attributes:
        seconds: of training, on one core.
        steps: of training.
        clean: accuracy on the images as they are.
        robust: accuracy under PGD of 50 steps.
    """

    seconds: float
    steps: int
    clean: float
    robust: float


def train(task: Cifar, solver: JointSolver, seconds: float, seed: int) -> list[Snapshot]:
    """Train in place for ``seconds`` of one core; the classifier after each share of them in :data:`CURVE`."""
    images = Images.of(task, task.data.splits.train)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(task.parameters())
    penalty, adjoint = SpectralPenalty(weight=PENALTY), Envelope()
    task.train()
    race = Race(seconds, CURVE)
    snapshots: list[Snapshot] = []
    while race.runs:
        with race.step():
            for group in optimizer.param_groups:
                group["lr"] = HIGHEST_LR * shape(race.share)
            batch = images.draw(BATCH, generator)
            with cached_weights(task):
                problem = task.problem(batch)
                equilibrium = solver.solve(problem, *task.start(batch), adjoint=adjoint)
                loss = task.loss(equilibrium, batch).mean() + penalty.weight * penalty.penalty(problem, equilibrium)
                optimizer.zero_grad()
                loss.backward()
            nn.utils.clip_grad_norm_(task.parameters(), 1.0)
            optimizer.step()
        snapshots += race.passed(task.classifier)
    return snapshots


def mark(task: Cifar, snapshot: Snapshot, images: Images) -> Mark:
    """Accuracy at exact equilibria; the attack's gradients are solved to 1e-3."""
    task.classifier.load_state_dict(snapshot.weights)
    exact = ExactClassifier(task.classifier)
    attacked = ExactClassifier(task.classifier, solver=Anderson(max_nfe=60, tol=1e-3))
    right = {"clean": 0, "robust": 0}
    for image, label in zip(images.image.split(CHUNK), images.label.split(CHUNK), strict=True):
        found = PGD(steps=50).perturbed(attacked, image, label, task.threat)
        right["clean"] += int((exact.predict(image).label == label).sum())
        right["robust"] += int((exact.predict(found).label == label).sum())
    shares = {name: count / len(images.label) for name, count in right.items()}
    return Mark(round(snapshot.seconds, 1), snapshot.steps, **shares)


def run(method: str, seed: int, chosen: argparse.Namespace) -> None:
    """Train and attack one network, unless its file is there."""
    part = "validation" if chosen.validate else "test"
    path = chosen.out / f"{method}-{part}-{chosen.seconds:g}s-{seed}.json"
    if path.exists():
        return
    torch.manual_seed(seed)
    task = METHODS[method].task(chosen.root, chosen.download)
    print(f"training {method}, seed {seed}, {chosen.seconds:g} s", flush=True)
    snapshots = train(task, METHODS[method].solver, chosen.seconds, seed)
    task.eval()
    splits = task.data.splits
    images = Images.of(task, (splits.val if chosen.validate else splits.test)[: chosen.images])
    marks = [mark(task, snapshot, images) for snapshot in snapshots]
    for one in marks:
        print(f"  {one.seconds:.0f} s, {one.steps} steps: clean {one.clean:.3f}, robust {one.robust:.3f}", flush=True)
    said = {"method": method, "seed": seed, "budget": chosen.seconds, "images": len(images.label)}
    write_run(path, {**said, "part": part, "marks": [asdict(one) for one in marks]})


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adversarial", description=__doc__)
    parser.add_argument(
        "--root", type=Path, help="folder with MNIST as torchvision lays it out; else digits, to try it"
    )
    parser.add_argument("--download", action="store_true", help="let torchvision download or unpack MNIST there")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["joint", "pgd", "warm5"], help="%(default)s")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of weights and batches (%(default)s)")
    parser.add_argument("--seconds", type=float, default=180.0, help="of training on one core (%(default)s)")
    parser.add_argument("--images", type=int, default=300, help="that are attacked (%(default)s)")
    parser.add_argument("--validate", action="store_true", help="attack validation images: to choose settings with")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "adversarial", help="%(default)s")
    chosen = parser.parse_args(argv)
    chosen.download = Download.MNIST if chosen.download else None
    return chosen


def main(argv: Sequence[str] | None = None) -> None:
    chosen = arguments(argv)
    torch.set_num_threads(1)
    for seed in chosen.seeds:
        for method in chosen.methods:
            run(method, seed, chosen)
    labels = {name: method.label for name, method in METHODS.items()}
    print(write(chosen.out, labels, RADIUS))


if __name__ == "__main__":
    main()
