"""What ``python -m benchmarks.fewshot`` trains: the joint method by some adjoint, and the learners beside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from deqopt_tasks.omniglot.episodes import EpisodeBatch
from deqopt_tasks.omniglot.learners import Baseline, Learner, make_learner
from deqopt_tasks.omniglot.network import EpisodeNetwork
from deqopt_tasks.omniglot.task import Omniglot
from torch import Tensor, nn

from deqopt import Equilibrium, JointProblem
from deqopt.adjoints import Adjoint
from deqopt.equilibrium import BackwardReport
from deqopt.iteration import Status
from deqopt.nn.multiscale import Branches
from deqopt.regularizers import Regularizer
from deqopt.solvers import JointSolver, solve_exactly
from deqopt.weights import cached_weights


@dataclass(frozen=True)
class Setting:
    """What methods share.

    Attributes:
        train_ways, train_queries: of the episodes that the joint method and PROTOTYPES train on.
        queries: of a class, of the episodes that all are tested on, and that MAML and ANIL train on.
        batch: episodes in a training step of the joint method.
        lr: its highest learning rate of Adam.
        clip: the largest norm of its gradient to theta.
        penalty: added to the loss of the joint method, and to that of PROTOTYPES at the equilibria alone.
        size: height and width of the images, which are grey.
        widths, context, features, weight: of the network and the objective, see the task ``omniglot``.
    """

    train_ways: int
    train_queries: int
    queries: int
    batch: int
    lr: float
    clip: float
    penalty: Regularizer
    size: int
    widths: tuple[int, ...]
    context: int
    features: int
    weight: float

    def task(self, transductive: bool = False) -> Omniglot:
        """A new one, for its networks: its data is not opened."""
        return Omniglot(
            size=self.size,
            widths=list(self.widths),
            context=self.context,
            features=self.features,
            weight=self.weight,
            transductive=transductive,
        )


@dataclass(frozen=True)
class Inner:
    """How the inner problem of an episode was solved.

    Attributes:
        before, after: its objective at the start and at the point that is found, both with exact z.
        nfe: evaluations.
        residual: relative, of the stationary system once z and mu are exact.
    """

    before: float
    after: float
    nfe: float
    residual: float


@dataclass(frozen=True)
class Answer:
    """What a method says of a batch.

    Attributes:
        probabilities: (B, Q, ways) of the queries.
        inner: how the inner problems were solved, for every episode; computed when it is called. Empty where there
            are none.
    """

    probabilities: Tensor
    inner: Callable[[], list[Inner]] = list


class Entrant(ABC):
    """A network in training.

    Attributes:
        network: the weights.
        lr: the highest learning rate of Adam.
        clip: the largest norm of a gradient; None for any.
        batch_size: episodes in a training step.
        reports: how backward systems were solved, a report for every step that had one.
    """

    network: nn.Module
    lr: float
    clip: float | None
    batch_size: int
    reports: list[BackwardReport]

    @abstractmethod
    def backward(self, batch: EpisodeBatch) -> Tensor:
        """Add the gradient of the loss to that of the weights; returns the loss."""

    @abstractmethod
    def answer(self, batch: EpisodeBatch) -> Answer: ...


@dataclass(frozen=True)
class Method(ABC):
    """What is trained.

    Attributes:
        label: in the figure and in tables.
    """

    label: str

    @abstractmethod
    def entrant(self, setting: Setting, ways: int) -> Entrant:
        """A new one, its weights from the global seed."""

    @property
    def needs_learn2learn(self) -> bool:
        return False

    @abstractmethod
    def training(self, setting: Setting, ways: int) -> tuple[int, int]:
        """Classes of an episode to train on, and query images of a class."""


@dataclass(frozen=True)
class Joint(Method):
    """The task by some adjoint; settings were chosen on validation episodes.

    Attributes:
        transductive: whether the queries of an episode are seen together, as MAML and ANIL see them.
    """

    adjoint: Adjoint
    solver: JointSolver
    transductive: bool = False

    def entrant(self, setting: Setting, ways: int) -> Entrant:
        return JointEntrant(setting.task(self.transductive), setting, self.adjoint, self.solver)

    def training(self, setting: Setting, ways: int) -> tuple[int, int]:
        return max(ways, setting.train_ways), setting.train_queries


class JointEntrant(Entrant):
    """Trained and tested as the module of Lightning does."""

    def __init__(self, task: Omniglot, setting: Setting, adjoint: Adjoint, solver: JointSolver) -> None:
        self.network = self._task = task
        self.lr, self.clip, self.batch_size, self.reports = setting.lr, setting.clip, setting.batch, []
        self._penalty, self._adjoint, self._solver = setting.penalty, adjoint, solver

    def backward(self, batch: EpisodeBatch) -> Tensor:
        task, penalty = self._task, self._penalty
        with cached_weights(task):
            problem = task.problem(batch)
            start = task.start(batch)
            equilibrium = self._solver.solve(problem, *start, adjoint=self._adjoint, visits=penalty.visits)
            loss = task.loss(equilibrium, batch).mean() + penalty.weight * penalty.penalty(problem, equilibrium)
            loss.backward()
        report = equilibrium.backward
        if report is not None and report.residual is not None:
            # InputHeld has none: the queries do not depend on the z that it makes differentiable.
            self.reports.append(report)
        return loss.detach()

    def answer(self, batch: EpisodeBatch) -> Answer:
        with cached_weights(self._task):
            problem = self._task.problem(batch)
            exact = solve_exactly(problem, self._solver.solve(problem, *self._task.start(batch)))
            probabilities = self._task.probabilities(exact, batch)
        return Answer(probabilities, lambda: self._inner(batch, exact))

    def _inner(self, batch: EpisodeBatch, exact: Equilibrium) -> list[Inner]:
        figures = (self._task.objective_at_start(batch), exact.objective, exact.nfe, exact.residual)
        return [Inner(*map(float, row)) for row in zip(*(one.tolist() for one in figures), strict=True)]


@dataclass(frozen=True)
class Beside(Method):
    """A learner with the learning rate and the batches of its own, no gradient of which is clipped.

    MAML and ANIL train on episodes like those of the test, because they know no other number of classes; PROTOTYPES on
    those of the joint method, with its network and with its penalty on their own equilibria.
    """

    baseline: Baseline

    def entrant(self, setting: Setting, ways: int) -> Entrant:
        if self.baseline is Baseline.PROTOTYPES:
            return _Prototypes(setting, ways)
        return _Learning(make_learner(self.baseline, 1, setting.size, ways, nn.Module, setting.batch))

    @property
    def needs_learn2learn(self) -> bool:
        return self.baseline is not Baseline.PROTOTYPES

    def training(self, setting: Setting, ways: int) -> tuple[int, int]:
        if self.baseline is Baseline.PROTOTYPES:
            return max(ways, setting.train_ways), setting.train_queries
        return ways, setting.queries


class _Learning(Entrant):
    def __init__(self, learner: Learner) -> None:
        self.network = self._learner = learner
        self.lr, self.clip, self.batch_size, self.reports = learner.learning_rate, None, learner.batch_size, []

    def backward(self, batch: EpisodeBatch) -> Tensor:
        return self._learner.backward(batch)

    def answer(self, batch: EpisodeBatch) -> Answer:
        return Answer(self._learner.probabilities(batch))


class _Prototypes(_Learning):
    """With the penalty: its equilibria must be as cheap as those of the joint method."""

    def __init__(self, setting: Setting, ways: int) -> None:
        self._embedding = _Embedding(setting.task().network)
        super().__init__(
            make_learner(Baseline.PROTOTYPES, 1, setting.size, ways, lambda: self._embedding, setting.batch)
        )
        self._penalty = setting.penalty

    def backward(self, batch: EpisodeBatch) -> Tensor:
        with cached_weights(self._embedding):
            loss = self._learner.loss(batch)
            loss = loss + self._penalty.weight * self._penalty.penalty(*self._embedding.solution())
            loss.backward()
        return loss.detach()


class _Embedding(nn.Module):
    """``network.embed``, whose last equilibria are kept, for the penalty."""

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
