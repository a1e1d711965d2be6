"""The learner PROTOTYPES with the penalty of the joint method, so that its equilibria are as cheap."""

from __future__ import annotations

import torch
from deqopt_tasks.omniglot.episodes import EpisodeBatch
from deqopt_tasks.omniglot.learners import Prototypes
from deqopt_tasks.omniglot.network import EpisodeNetwork
from torch import Tensor, nn

from deqopt import Equilibrium, JointProblem
from deqopt.iteration import Status
from deqopt.nn.multiscale import Branches
from deqopt.regularizers import Regularizer
from deqopt.weights import cached_weights


class PenalisedPrototypes(Prototypes):  # type: ignore[misc]
    """`Prototypes` whose loss has a penalty at the equilibria of support and queries.

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
