"""``python -m benchmarks.training.fewshot``: accuracy on few-shot episodes, gradients and other learners side by side.

All are tested on the same episodes of classes that they have not seen. The joint method is trained by several
adjoints, which share network, episodes, optimiser and penalty; the others are MAML, ANIL and prototypes. The joint
method is tested as ``deqopt test`` does: by the solver of the training, z solved exactly, and the queries for the
context that was found.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from time import process_time
from typing import Any

import torch
from deqopt_tasks.omniglot.data import EpisodeData
from deqopt_tasks.omniglot.distortion import Distortion
from deqopt_tasks.omniglot.episodes import EpisodeBatch, Episodes
from deqopt_tasks.omniglot.equal_time import LearnerTraining
from deqopt_tasks.omniglot.learners import Baseline, Learner, Prototypes, make_learner
from deqopt_tasks.omniglot.network import EpisodeNetwork
from deqopt_tasks.omniglot.opening import open_classes
from deqopt_tasks.omniglot.optional import learn2learn
from deqopt_tasks.omniglot.task import Omniglot
from torch import Tensor, nn
from torch.utils.data import default_collate

from benchmarks.training.command import parsed, parser_of, run, samples_option
from benchmarks.training.joint import JointContestant, JointMethod, Recipe
from benchmarks.training.race import Contestant
from benchmarks.training.report import Report
from deqopt import Equilibrium, JointModule, JointProblem
from deqopt.adjoints import Envelope, Implicit, InputHeld, JacobianFree, Unrolled
from deqopt.compare import Measure
from deqopt.data.splits import Part
from deqopt.iteration import Status
from deqopt.nn.multiscale import Branches
from deqopt.regularizers import Regularizer, SpectralPenalty
from deqopt.solvers import JointAnderson, StepRule
from deqopt.weights import cached_weights

RECIPE = Recipe(
    lr=4e-3,
    clip=1.0,
    penalty=SpectralPenalty(weight=1.0),
    task={"size": 28, "widths": [48], "context": 32, "features": 64, "weight": 0.25},
)
TRAIN_WAYS, TRAIN_QUERIES, BATCH = 60, 3, 1
"""Classes of an episode that the joint method and PROTOTYPES train on, its queries of a class, episodes a step."""
QUERIES = 5
"""Of a class, in the episodes that all are tested on, and that MAML and ANIL train on: these know no other number of
classes than that of the test."""
CHUNK = 20
"""Episodes that are tested at once."""
SOLVER = JointAnderson(max_nfe=4, step_size=3.0, step_rule=StepRule.PLAIN, history_size=1)
JOINT = {
    "implicit": JointMethod("Implicit", SOLVER, Implicit(tol=0.5, max_nfe=9)),
    "unrolled": JointMethod("Unrolled", SOLVER, Unrolled()),
    "transductive": JointMethod("Unrolled, queries together", SOLVER, Unrolled(), task={"transductive": True}),
    "input_held": JointMethod("InputHeld", SOLVER, InputHeld(tol=1e-2, max_nfe=20)),
    "envelope": JointMethod("Envelope", SOLVER, Envelope()),
    "jacobian_free": JointMethod("JacobianFree", SOLVER, JacobianFree()),
}
LEARNERS = {"maml": Baseline.MAML, "anil": Baseline.ANIL, "prototypes": Baseline.PROTOTYPES}
LABELS = {name: method.label for name, method in JOINT.items()} | {name: one.value for name, one in LEARNERS.items()}
ACCURACY = Measure("accuracy", "accuracy in %", factor=100)
REPORT = Report(
    [
        ACCURACY,
        Measure("seconds", "ms/episode", factor=1000, digits=1, median=True),
        Measure("before", "objective at start", digits=3),
        Measure("after", "objective at end", digits=3),
        Measure("below_start", "ends below start, %", factor=100, digits=1),
        Measure("evaluations", digits=1),
        Measure("residual", digits=4),
    ],
    list(LABELS.values()),
    "episodes",
)


class PenalisedPrototypes(Prototypes):  # type: ignore[misc]
    """`Prototypes` whose loss has a penalty at the equilibria of support and queries: they are as cheap as those of the
    joint method then.

    Args:
        network: embeds the images.
        batch_size: episodes in a training step.
        penalty: is added with its weight.
    """

    def __init__(self, network: EpisodeNetwork, batch_size: int, penalty: Regularizer) -> None:
        super().__init__(RememberedEmbedding(network), batch_size)
        self._penalty = penalty

    def loss(self, batch: EpisodeBatch) -> Tensor:
        assert isinstance(self.network, RememberedEmbedding)
        with cached_weights(self):
            return super().loss(batch) + self._penalty.weight * self._penalty.penalty(*self.network.solution())


class RememberedEmbedding(nn.Module):
    """``network.embed``, whose last equilibria are kept."""

    def __init__(self, network: EpisodeNetwork) -> None:
        super().__init__()
        self.network = network
        self._last: tuple[Tensor, Branches]

    def embed(self, images: Tensor) -> Tensor:
        c = images.new_zeros(len(images), self.network.context)
        z = self.network.solved(images, c)
        self._last = images, z
        return self.network.features(z)

    def solution(self) -> tuple[JointProblem, Equilibrium]:
        """The last equilibria as the solution of a problem in which nothing is optimised.

        Its multiplier would be 0; z is in its place, for a power iteration to start from.
        """
        images, z = self._last
        c, zeros = images.new_zeros(len(images), self.network.context), images.new_zeros(len(images))
        problem = JointProblem(
            lambda z, c, u: self.network.f(z, c, u), lambda z, c, u: zeros, data=self.network.injected(images)
        )
        status = torch.full_like(zeros, int(Status.CONVERGED), dtype=torch.int64)
        return problem, Equilibrium(z, c, z, zeros, zeros, status, status)


class LearnerContestant(Contestant):
    """A learner with the learning rate and the batches of its own, no gradient of which is clipped.

    Args:
        learner: a new one.
        episodes: that it trains on, in their order.
        tested: batches of the episodes of the test.
    """

    def __init__(self, learner: Learner, episodes: Episodes, tested: Callable[[], Iterator[EpisodeBatch]]) -> None:
        self.network = learner
        self._training, self._episodes, self._tested = LearnerTraining(learner), episodes, tested

    def next_batch(self) -> EpisodeBatch:
        return self._training.next_batch(self._episodes)

    def step(self, batch: EpisodeBatch, rate: float) -> Tensor:
        return self._training.step(batch, rate)

    def scores(self) -> Mapping[str, Sequence[float]]:
        scores = EpisodeScores()
        for batch in self._tested():
            scores.answered(batch, self._training.probabilities)
        return scores


class EpisodeScores(dict[str, list[float]]):
    """By measure, of every episode so far."""

    def answered(self, batch: EpisodeBatch, answer: Callable[[EpisodeBatch], Tensor]) -> None:
        """What probabilities (B, Q, ways) of the queries are worth, and how long they took."""
        began = process_time()
        probabilities = answer(batch)
        seconds = process_time() - began
        correct = (probabilities.argmax(2) == batch.query_label).double().mean(1)
        self.add(accuracy=correct, seconds=correct.new_full(correct.shape, seconds / len(correct)))

    def add(self, **values: Tensor) -> None:
        """Values (B,) of the next episodes."""
        for name, one in values.items():
            self.setdefault(name, []).extend(one.double().tolist())


def joint_scores(tested: Callable[[], Iterator[EpisodeBatch]], module: JointModule) -> EpisodeScores:
    """What the joint method reaches, and how its inner problems were solved."""
    task: Any = module.task
    scores = EpisodeScores()
    for batch in tested():
        solved: list[Any] = []

        def answer(batch: EpisodeBatch, solved: list[Any] = solved) -> Tensor:
            solved.append(module.predict_step(batch, 0)["equilibrium"])
            probabilities: Tensor = task.probabilities(solved[0], batch)
            return probabilities

        scores.answered(batch, answer)
        (at,), before = solved, task.objective_at_start(batch)
        below = at.objective < before
        scores.add(before=before, after=at.objective, below_start=below, evaluations=at.nfe, residual=at.residual)
    return scores


def batch_of(episodes: Episodes, items: range) -> EpisodeBatch:
    """Some episodes; items beyond their number are those of further epochs."""
    batch: EpisodeBatch = default_collate([episodes[item] for item in items])
    return batch


def in_chunks(episodes: Episodes) -> Iterator[EpisodeBatch]:
    """All in their order."""
    for first in range(0, len(episodes), CHUNK):
        yield batch_of(episodes, range(first, min(first + CHUNK, len(episodes))))


def data_of(chosen: argparse.Namespace, train_ways: int, train_queries: int, seed: int) -> EpisodeData:
    """Episodes of classes whose splits no seed changes."""
    return EpisodeData(
        partial(open_classes, chosen.root, size=RECIPE.task["size"], channels=1),
        ways=chosen.ways,
        shots=chosen.shots,
        queries=QUERIES,
        train_ways=train_ways,
        train_queries=train_queries,
        batch_size=BATCH,
        val_episodes=chosen.episodes,
        test_episodes=chosen.episodes,
        rotations=True,
        distortion=Distortion(*chosen.distort),
        episode_seed=seed,
    )


def contestant(name: str, seed: int, chosen: argparse.Namespace) -> Contestant:
    adapted = name in ("maml", "anil")
    shape = (chosen.ways, QUERIES) if adapted else (max(chosen.ways, TRAIN_WAYS), TRAIN_QUERIES)
    training = data_of(chosen, *shape, seed).episodes[Part.TRAIN]
    # The episodes of a test are those of seed 0, whatever the seed of the run is.
    of_test = data_of(chosen, *shape, 0).episodes[Part.VAL if chosen.validate else Part.TEST]
    tested = partial(in_chunks, of_test)
    if adapted:
        learn2learn(f"the method {name}", "leaving it out of --methods")
        learner = make_learner(LEARNERS[name], 1, RECIPE.task["size"], chosen.ways, nn.Module, BATCH)
        return LearnerContestant(learner, training, tested)
    settings: dict[str, Any] = {**RECIPE.task, **(JOINT[name].task if name in JOINT else {})}
    task = Omniglot(**settings)
    if name not in JOINT:
        return LearnerContestant(PenalisedPrototypes(task.network, BATCH, RECIPE.penalty), training, tested)
    batches = (batch_of(training, range(first, first + BATCH)) for first in count(step=BATCH))
    return JointContestant(task, JOINT[name], RECIPE, batches.__next__, partial(joint_scores, tested))


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = parser_of("fewshot", __doc__, LABELS, list(LABELS), [0])
    parser.add_argument("--ways", type=int, default=5, help="classes of a test episode (%(default)s)")
    parser.add_argument("--shots", type=int, default=1, help="support images of a class (%(default)s)")
    parser.add_argument(
        "--distort",
        nargs=2,
        type=float,
        metavar=("CLASSES", "IMAGES"),
        default=[2.0, 0.5],
        help="how much classes and images of training episodes are distorted, for all methods (%(default)s)",
    )
    samples_option(parser, "--episodes", 600, "that are tested")
    return parsed(parser, argv)


def scene_of(chosen: argparse.Namespace) -> str:
    data, part = "glyphs" if chosen.root is None else chosen.root.resolve().name, "val" if chosen.validate else "test"
    distorted = "distorted by {:g} and {:g}".format(*chosen.distort) if any(chosen.distort) else "as they are"
    return (
        f"{chosen.ways}-way {chosen.shots}-shot, {chosen.episodes} {part} episodes of {data}, {chosen.seconds:g} s, "
        f"training images {distorted}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    chosen = arguments(argv)
    for seed in chosen.seeds:
        methods = {LABELS[name]: partial(contestant, name, seed, chosen) for name in chosen.methods}
        run(scene_of(chosen), seed, chosen.seconds, methods, chosen.out, ACCURACY)
    print(REPORT.write(chosen.out))


if __name__ == "__main__":
    main()
