"""Learners that the joint method is compared with: for a batch, a learner computes a loss and probabilities."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deqopt.weights import cached_weights

from .convolutional import ConvolutionalNet, package
from .episodes import EpisodeBatch

FIRST_SCALE = 0.1
"""Initial scale of the squared distances of PROTOTYPES, which is then learned."""


class Learner(nn.Module, ABC):
    """Learns from the support set of an episode to classify its queries.

    Attributes:
        learning_rate: learning rate of Adam on the outer loss.
        batch_size: episodes per training step.
        ways: largest number of classes per episode; None for any number.
    """

    learning_rate: ClassVar[float]
    batch_size: int
    ways: int | None = None

    @abstractmethod
    def logits(self, batch: EpisodeBatch) -> Tensor:
        """(B, Q, ways) the logits of the queries, differentiable in the weights."""

    def loss(self, batch: EpisodeBatch) -> Tensor:
        """The outer loss: the mean cross-entropy of all queries, a scalar."""
        return F.cross_entropy(self.logits(batch).flatten(0, 1), batch.query_label.flatten())

    def backward(self, batch: EpisodeBatch) -> Tensor:
        """Add the gradient of the loss to the gradients of the weights; returns the loss."""
        loss = self.loss(batch)
        loss.backward()
        return loss.detach()

    def probabilities(self, batch: EpisodeBatch) -> Tensor:
        """(B, Q, ways) the class probabilities, detached; may be called under ``torch.no_grad``."""
        with torch.enable_grad():
            return self.logits(batch).detach().softmax(-1)


class Adapted(Learner):
    """A learner that adapts to the episodes one after the other, in a Python loop, as learn2learn does.

    The graph of each episode is freed before the next, so a batch needs the memory of only one episode.
    """

    learning_rate = 3e-3
    batch_size = 4

    def __init__(self, ways: int) -> None:
        super().__init__()
        self.ways = ways

    @abstractmethod
    def episode(self, support: Tensor, label: Tensor, query: Tensor) -> Tensor:
        """Logits (Q, ways) of one episode."""

    def logits(self, batch: EpisodeBatch) -> Tensor:
        return torch.stack([self.episode(one.support[0], one.support_label[0], one.query[0]) for one in _each(batch)])

    def backward(self, batch: EpisodeBatch) -> Tensor:
        episodes = list(_each(batch))
        return torch.stack([_backward(self.loss(one) / len(episodes)) for one in episodes]).sum()

    def probabilities(self, batch: EpisodeBatch) -> Tensor:
        return torch.cat([super(Adapted, self).probabilities(one) for one in _each(batch)])


class MAML(Adapted):
    """Gradient steps on the support set from learned weights, differentiated through (Finn et al. 2017).

    Args:
        net: network from images (n, channels, H, W) to logits (n, ways).
        ways: classes per episode.
        steps: number of gradient steps per episode.
        rate: step size of the gradient steps.
    """

    def __init__(self, net: nn.Module, ways: int, steps: int = 1, rate: float = 0.5) -> None:
        super().__init__(ways)
        self._steps = steps
        self.maml = package().algorithms.MAML(net, lr=rate)

    def episode(self, support: Tensor, label: Tensor, query: Tensor) -> Tensor:
        adapted = self.maml.clone()
        for _ in range(self._steps):
            adapted.adapt(F.cross_entropy(adapted(support), label))
        return adapted(query)


class ANIL(Adapted):
    """MAML of the last layer alone, on learned features (Raghu et al. 2020).

    As in learn2learn's example, the features of all images of an episode are computed at once.

    Args:
        features: network from images (n, channels, H, W) to features (n, width).
        classifier: network from features to logits (n, ways).
        ways, steps, rate: see MAML.
    """

    def __init__(
        self, features: nn.Module, classifier: nn.Module, ways: int, steps: int = 5, rate: float = 0.1
    ) -> None:
        super().__init__(ways)
        self._steps = steps
        # All images are processed together, which is faster in this memory layout; the few images of MAML are not.
        self.features = features.to(memory_format=torch.channels_last)
        self.maml = package().algorithms.MAML(classifier, lr=rate)

    def episode(self, support: Tensor, label: Tensor, query: Tensor) -> Tensor:
        known, asked = self.features(torch.cat([support, query])).split([len(support), len(query)])
        adapted = self.maml.clone()
        for _ in range(self._steps):
            adapted.adapt(F.cross_entropy(adapted(known), label))
        return adapted(asked)


class Prototypes(Learner):
    """Logits ``-a |phi(q) - c_k|^2``, where c_k is the mean of phi over the support images of class k (Snell et al.
    2017).

    The scale a is learned (Oreshkin et al. 2018), because phi has a fixed length.

    Args:
        network: ``network.embed(images)`` is phi: (B, S, channels, H, W) to (B, S, width), differentiable.
        batch_size: episodes per training step.
    """

    learning_rate = 4e-3

    def __init__(self, network: nn.Module, batch_size: int) -> None:
        super().__init__()
        self.network, self.batch_size = network, batch_size
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def logits(self, batch: EpisodeBatch) -> Tensor:
        shots = batch.support.shape[1]
        with cached_weights(self):
            phi = self.network.embed(torch.cat([batch.support, batch.query], dim=1))  # type: ignore[operator]
        member = F.one_hot(batch.support_label).to(phi)  # every class occurs, so one_hot finds the number of classes
        centres = torch.einsum("bsk,bsd->bkd", member / member.sum(1, keepdim=True), phi[:, :shots])
        return -(phi[:, shots:, None] - centres[:, None]).square().sum(-1) * self.log_scale.exp()


class Baseline(Enum):
    """Baseline methods that are trained alongside the joint method."""

    MAML = "MAML"
    ANIL = "ANIL"
    PROTOTYPES = "prototypes"
    """A prototypical head on the features of the equilibrium, without a context."""


def make_learner(
    baseline: Baseline, image_channels: int, size: int, ways: int, network: Callable[[], nn.Module], batch_size: int
) -> Learner:
    """A new learner.

    Args:
        baseline: kind of learner.
        image_channels, size: colour channels and size of the images.
        ways: classes per episode.
        network: function that creates the network by which PROTOTYPES embeds images, such as that of the joint method.
        batch_size: batch size of PROTOTYPES, which trains on episodes like those of the joint method.

    Raises:
        ProblemError: for MAML and ANIL, learn2learn is missing, or the images are too small.
    """
    if baseline is Baseline.PROTOTYPES:
        return Prototypes(network(), batch_size)
    net = ConvolutionalNet(image_channels, size, ways)
    return MAML(net, ways) if baseline is Baseline.MAML else ANIL(net.features, net.classifier, ways)


def _each(batch: EpisodeBatch) -> Iterator[EpisodeBatch]:
    """The episodes as batches with one episode each."""
    for number in range(len(batch.support)):
        yield EpisodeBatch(*(part[number : number + 1] for part in batch))


def _backward(loss: Tensor) -> Tensor:
    loss.backward()
    return loss.detach()
