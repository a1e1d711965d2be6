"""``python -m benchmarks.fewshot``: accuracy on few-shot episodes against training time, methods side by side.

Every method is trained for the same time of one core, its learning rate a function of the share of it that is spent,
and tested on the same episodes of classes that it has not seen. The joint method is trained by several adjoints, which
share network, episodes, optimiser and penalty; the others are MAML, ANIL and prototypes. The joint method is tested as
``deqopt test`` does: by the solver of the training, z solved exactly, and the queries for the context that was found.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from time import process_time

import torch
from deqopt_tasks.omniglot.data import EpisodeData
from deqopt_tasks.omniglot.distortion import Distortion
from deqopt_tasks.omniglot.episodes import EpisodeBatch, Episodes
from deqopt_tasks.omniglot.learners import Baseline
from deqopt_tasks.omniglot.opening import open_classes
from deqopt_tasks.omniglot.optional import learn2learn
from torch import nn
from torch.utils.data import default_collate

from benchmarks.fewshot_methods import Beside, Entrant, Inner, Joint, Method, Setting
from benchmarks.fewshot_report import write
from benchmarks.schedule import shape
from benchmarks.timed import Backward, Race, Snapshot, write_run
from deqopt.adjoints import Envelope, Implicit, InputHeld, JacobianFree, Unrolled
from deqopt.data.splits import Part
from deqopt.errors import NonFiniteError
from deqopt.regularizers import SpectralPenalty
from deqopt.solvers import JointAnderson, StepRule

SETTING = Setting(
    train_ways=60,
    train_queries=3,
    queries=5,
    batch=1,
    lr=4e-3,
    clip=1.0,
    penalty=SpectralPenalty(weight=1.0),
    size=28,
    widths=(48,),
    context=32,
    features=64,
    weight=0.25,
)
SOLVER = JointAnderson(max_nfe=4, step_size=3.0, step_rule=StepRule.PLAIN, memory=1)
METHODS: dict[str, Method] = {
    "implicit": Joint("Implicit", Implicit(tol=0.5, max_nfe=9), SOLVER),
    "unrolled": Joint("Unrolled", Unrolled(), SOLVER),
    "transductive": Joint("Unrolled, queries together", Unrolled(), SOLVER, transductive=True),
    "input_held": Joint("InputHeld", InputHeld(tol=1e-2, max_nfe=20), SOLVER),
    "envelope": Joint("Envelope", Envelope(), SOLVER),
    "jacobian_free": Joint("JacobianFree", JacobianFree(), SOLVER),
    "maml": Beside("MAML", Baseline.MAML),
    "anil": Beside("ANIL", Baseline.ANIL),
    "prototypes": Beside("prototypes", Baseline.PROTOTYPES),
}
CHUNK = 20
"""Episodes that are tested at once."""


@dataclass(frozen=True)
class Solves:
    """How inner problems were solved: means over the episodes of a test.

    Attributes:
        before, after: the objective at the start and at the point that is found, both with exact z.
        below_start: share of the episodes that end below their start.
        nfe: evaluations.
        residual: relative, of the stationary system once z and mu are exact.
    """

    before: float
    after: float
    below_start: float
    nfe: float
    residual: float

    @classmethod
    def of(cls, episodes: Sequence[Inner]) -> Solves | None:
        """None where there is no inner problem."""
        if not episodes:
            return None
        before, after, nfe, residual = (
            fmean(getattr(one, name) for one in episodes) for name in ("before", "after", "nfe", "residual")
        )
        return cls(before, after, fmean(one.after < one.before for one in episodes), nfe, residual)


@dataclass(frozen=True)
class Mark:
    """What a network has learned after some training.

    Attributes:
        seconds, steps, episodes: of training so far.
        right: the queries of every test episode that it classifies rightly.
        milliseconds: of one core, a test episode.
        solves: see :class:`Solves`.
        backward: see :class:`benchmarks.timed.Backward`.
    """

    seconds: float
    steps: int
    episodes: int
    right: list[int]
    milliseconds: float
    solves: Solves | None
    backward: Backward | None


@dataclass(frozen=True)
class Trained:
    """A network during its training, after that many episodes."""

    snapshot: Snapshot
    episodes: int
    backward: Backward | None


def train(entrant: Entrant, episodes: Episodes, seconds: float, told: str) -> list[Trained]:
    """Train in place for ``seconds`` of one core, which the loading of episodes does not count for.

    Args:
        told: which training it is, for the error.

    Raises:
        NonFiniteError: the training has diverged.
    """
    network = entrant.network
    weights = list(network.parameters())
    optimizer = torch.optim.Adam(weights)
    network.train()
    race = Race(seconds, clock=process_time)
    trained: list[Trained] = []
    while race.runs:
        first = race.steps * entrant.batch_size
        batch: EpisodeBatch = default_collate([episodes[item] for item in range(first, first + entrant.batch_size)])
        with race.step():
            for group in optimizer.param_groups:
                group["lr"] = entrant.lr * shape(race.share)
            optimizer.zero_grad()
            loss = entrant.backward(batch)
            norm = nn.utils.clip_grad_norm_(weights, entrant.clip or float("inf"))
            if not (loss.isfinite() and norm.isfinite()):
                raise NonFiniteError(
                    f"training of {told} has diverged in step {race.steps + 1}: lower lr or clip of the setting, or "
                    "raise its penalty"
                )
            optimizer.step()
        seen = first + entrant.batch_size
        trained += [
            Trained(snapshot, seen, Backward.of_steps(entrant.reports)) for snapshot in race.passed(entrant.network)
        ]
    return trained


def mark(entrant: Entrant, trained: Trained, episodes: Episodes) -> Mark:
    """Test a network on all episodes of an epoch."""
    entrant.network.load_state_dict(trained.snapshot.weights)
    entrant.network.eval()
    right: list[int] = []
    inner: list[Inner] = []
    spent = 0.0
    for batch in chunks_of(episodes):
        started = process_time()
        answer = entrant.answer(batch)
        spent += process_time() - started
        right += (answer.probabilities.argmax(2) == batch.query_label).sum(1).tolist()
        inner += answer.inner()
    snapshot, milliseconds = trained.snapshot, round(1000 * spent / len(right), 2)
    seconds = round(snapshot.seconds, 1)
    return Mark(seconds, snapshot.steps, trained.episodes, right, milliseconds, Solves.of(inner), trained.backward)


def chunks_of(episodes: Episodes) -> Iterator[EpisodeBatch]:
    """Batches of :data:`CHUNK`."""
    for first in range(0, len(episodes), CHUNK):
        yield default_collate([episodes[item] for item in range(first, min(first + CHUNK, len(episodes)))])


def data_of(chosen: argparse.Namespace, training: tuple[int, int], seed: int) -> EpisodeData:
    """Episodes of classes whose splits no seed changes."""
    return EpisodeData(
        partial(open_classes, chosen.root, size=SETTING.size, channels=1),
        ways=chosen.ways,
        shots=chosen.shots,
        queries=SETTING.queries,
        train_ways=training[0],
        train_queries=training[1],
        batch_size=1,
        val_episodes=chosen.episodes,
        test_episodes=chosen.episodes,
        rotations=True,
        distortion=Distortion(*chosen.distort),
        episode_seed=seed,
    )


def path_of(name: str, seed: int, chosen: argparse.Namespace) -> Path:
    """The file of a run."""
    scene = f"{_data_name(chosen)}-{chosen.ways}way-{chosen.shots}shot-{chosen.episodes}-{_part(chosen).value}"
    distorted = "-".join(f"{strength:g}" for strength in chosen.distort)
    return chosen.out / f"{name}-{scene}-{distorted}-{chosen.seconds:g}s-{seed}.json"


def _data_name(chosen: argparse.Namespace) -> str:
    return "glyphs" if chosen.root is None else chosen.root.resolve().name


def _part(chosen: argparse.Namespace) -> Part:
    return Part.VAL if chosen.validation else Part.TEST


def run(name: str, seed: int, chosen: argparse.Namespace) -> None:
    """Train and test one network, and write its file."""
    part, data = _part(chosen), _data_name(chosen)
    method = METHODS[name]
    torch.manual_seed(seed)
    entrant = method.entrant(SETTING, chosen.ways)
    training = method.training(SETTING, chosen.ways)
    told = f"{method.label} ({data}, {chosen.ways}-way {chosen.shots}-shot, seed {seed})"
    print(f"training {told} for {chosen.seconds:g} s", flush=True)
    with warnings.catch_warnings():
        # They are counted: see Backward.unsolved.
        warnings.filterwarnings("ignore", message="Implicit: the backward solve")
        trained = train(entrant, data_of(chosen, training, seed).episodes[Part.TRAIN], chosen.seconds, told)
    # The episodes of a test are those of seed 0, whatever the seed of the run is.
    episodes = data_of(chosen, training, 0).episodes[part]
    queries = chosen.ways * SETTING.queries
    marks = []
    for one in trained:
        marks.append(mark(entrant, one, episodes))
        accuracy = 100 * fmean(marks[-1].right) / queries
        print(f"  {marks[-1].seconds:.0f} s, {marks[-1].steps} steps: {accuracy:.2f} %", flush=True)
    said = {"method": name, "seed": seed, "budget": chosen.seconds, "data": data, "part": part.value}
    said |= {"ways": chosen.ways, "shots": chosen.shots, "episodes": chosen.episodes, "queries": queries}
    said |= {"distort": chosen.distort}
    write_run(path_of(name, seed, chosen), {**said, "marks": [asdict(one) for one in marks]})


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fewshot", description=__doc__)
    parser.add_argument("--root", type=Path, help="folder of Omniglot or of classes; else embedded glyphs, to try it")
    parser.add_argument(
        "--methods", nargs="*", choices=METHODS, default=list(METHODS), help="none: report alone (%(default)s)"
    )
    parser.add_argument("--ways", type=int, default=5, help="classes of a test episode (%(default)s)")
    parser.add_argument("--shots", type=int, default=1, help="support images of a class (%(default)s)")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0], help="of weights and training episodes (%(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=180.0, help="of training on one core (%(default)s)")
    parser.add_argument(
        "--distort",
        nargs=2,
        type=float,
        metavar=("CLASSES", "IMAGES"),
        default=[2.0, 0.5],
        help="how much classes and images of training episodes are distorted, for all methods (%(default)s)",
    )
    parser.add_argument("--episodes", type=int, default=600, help="that are tested (%(default)s)")
    parser.add_argument("--validation", action="store_true", help="on validation episodes: to choose settings with")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "fewshot", help="%(default)s")
    chosen = parser.parse_args(argv)
    if not chosen.seconds > 0 or chosen.episodes < 1:
        parser.error(
            f"--seconds must be larger than 0 and --episodes 1 or more, got {chosen.seconds:g}, {chosen.episodes}"
        )
    return chosen


def main(argv: Sequence[str] | None = None) -> None:
    chosen = arguments(argv)
    torch.set_num_threads(1)
    wanted = [(name, seed) for seed in chosen.seeds for name in chosen.methods]
    lacking = [(name, seed) for name, seed in wanted if not path_of(name, seed, chosen).exists()]
    for name, _ in lacking:
        if METHODS[name].needs_learn2learn:
            learn2learn(f"the method {name}", "leaving it out of --methods")
    for name, seed in lacking:
        run(name, seed, chosen)
    print(write(chosen.out, {name: method.label for name, method in METHODS.items()}, _part(chosen)))


if __name__ == "__main__":
    main()
