"""The command lines of races, and what they do."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.training.race import Contestant, race
from benchmarks.training.report import Milestone, TrainingRun, path_of
from deqopt.compare import Measure


def run(
    scene: str, seed: int, seconds: float, methods: Mapping[str, Callable[[], Contestant]], folder: Path, main: Measure
) -> None:
    """Race the methods, by their labels, whose files are not in ``folder``, and write these.

    Args:
        main: the measure that is told meanwhile.
    """
    lacking = {label: make for label, make in methods.items() if not path_of(folder, scene, label, seed).exists()}
    contestants = {label: Contestant.seeded(seed, make) for label, make in lacking.items()}
    if not contestants:
        return
    print(f"{scene}, seed {seed}: training {'; '.join(contestants)}", flush=True)
    with warnings.catch_warnings():
        # Failures are counted: see backward_notes.
        warnings.filterwarnings("ignore", message="Implicit: the backward solve")
        snapshots = race(contestants, seconds)
    for label, one in contestants.items():
        milestones = []
        with one.drawing():
            for snapshot in snapshots[label]:
                one.network.load_state_dict(snapshot.weights)
                one.network.eval()
                milestones.append(Milestone(round(snapshot.seconds, 1), snapshot.steps, one.scores()))
                reached = main.shown(fmean(milestones[-1].scores[main.metric]))
                print(f"  {label}, {snapshot.seconds:.0f} s, {snapshot.steps} steps: {reached}", flush=True)
        TrainingRun(scene, label, seed, milestones, one.notes()).write(folder)


def parser_of(
    name: str, about: str | None, methods: Iterable[str], chosen: Sequence[str], seeds: Sequence[int]
) -> argparse.ArgumentParser:
    """What all these benchmarks are asked.

    Args:
        name: of the module.
        about: what it does.
        methods: all there are.
        chosen, seeds: by default.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.training.{name}", description=about)
    parser.add_argument("--root", type=Path, help="folder or file of the data; else embedded data, to try it")
    parser.add_argument(
        "--methods",
        nargs="*",
        choices=list(methods),
        default=list(chosen),
        help="that are trained in turns; none: report alone (%(default)s)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=seeds, help="of weights and batches (%(default)s)")
    parser.add_argument("--seconds", type=_positive, default=180.0, help="of training on one core (%(default)s)")
    parser.add_argument("--validate", action="store_true", help="test on validation samples: to choose settings with")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "out" / name, help="%(default)s")
    return parser


def samples_option(parser: argparse.ArgumentParser, name: str, default: int, about: str) -> None:
    """How many samples are tested."""
    parser.add_argument(name, type=_count, default=default, help=f"{about} (%(default)s)")


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; a training has one core."""
    torch.set_num_threads(1)
    return parser.parse_args(argv)


def _positive(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"must be larger than 0, got {text}")
    return value


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return value
