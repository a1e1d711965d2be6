"""Learners that the joint method is compared with: for a batch, a learner computes a loss and probabilities."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from enum import Enum
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deqopt.errors import ProblemError
from deqopt.weights import cached_weights

from .episodes import EpisodeBatch
from .optional import learn2learn

FIRST_SCALE = 0.1
"""Of the squared distances of PROTOTYPES, before it is learned."""
SMALLEST = 16
"""Height and width below which four poolings of the convolutional network leave nothing."""


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


def package() -> ModuleType:
    """learn2learn.

    Raises:
        ProblemError: it is missing.
    """
    return learn2learn("each of the baselines MAML and ANIL", "--task.baselines [PROTOTYPES]")


class ConvolutionalNet(nn.Module):
    """What MAML and ANIL adapt, made by learn2learn: ``classifier(features(1 - images))``, (n, channels, H, W) in
    [0, 1] to logits (n, ways).

    Four times a 3x3 convolution, batch normalisation and ReLU. Images of 28 x 28 in one channel get the network of Finn
    et al. (2017) for Omniglot, with strides and the mean over space (``OmniglotCNN``), others theirs for mini-ImageNet,
    with pooling (``MiniImagenetCNN``).

    As published, what is normalised by is always the statistics of the images that are seen at once, in testing too:
    so the queries of an episode are not classified one by one but help each other (Nichol et al. 2018 call this
    transductive). No running statistics are kept.

    Unlike there, the scales of normalisation start at 1, and not anywhere below it, and the classifier starts as
    PyTorch would have it, and not from N(0, 1): it learns faster.

    Args:
        image_channels, size: of the images.
        ways: classes of an episode; this network knows no other number.
        width: channels of a block.

    Raises:
        ProblemError: learn2learn is missing; images smaller than 16 x 16.
    """

    def __init__(self, image_channels: int, size: int, ways: int, width: int = 64) -> None:
        super().__init__()
        models = package().vision.models
        if size < SMALLEST:
            raise ProblemError(
                f"the convolutional network of MAML and ANIL needs images of {SMALLEST}x{SMALLEST} or larger, "
                f"but these have a size of {size}"
            )
        if (image_channels, size) == (1, 28):
            net = models.OmniglotCNN(ways, hidden_size=width)
        else:
            pooled = width * (size // SMALLEST) ** 2
            net = models.MiniImagenetCNN(ways, hidden_size=width, channels=image_channels, embedding_size=pooled)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
        net.classifier.reset_parameters()
        self.features, self.classifier = net.features, net.classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(1 - images))


class ANIL(Learner):
    """Gradient steps of a classifier on the support set from learned weights, differentiated through, on learned
    features (Raghu et al. 2020).

    As in learn2learn's example, all images of an episode go through the features at once. It adapts to one episode
    after the other, in Python, because learn2learn does; their graphs are dropped one by one too, so that a batch needs
    the memory of an episode.

    Args:
        features: images (n, channels, H, W) to (n, width).
        classifier: these to logits (n, ways).
        ways: classes of an episode.
        steps: of gradient descent an episode.
        rate: their length.
    """

    learning_rate = 3e-3
    batch_size = 4

    def __init__(
        self, features: nn.Module, classifier: nn.Module, ways: int, steps: int = 5, rate: float = 0.1
    ) -> None:
        super().__init__()
        self.ways, self._steps = ways, steps
        # Its images go through together, which convolutions of this layout do faster; MAML's few do not.
        self.features = features.to(memory_format=torch.channels_last)
        self.maml = package().algorithms.MAML(classifier, lr=rate)

    def _episode(self, support: Tensor, label: Tensor, query: Tensor) -> Tensor:
        """Logits (Q, ways) of one episode."""
        known, asked = self.features(torch.cat([support, query])).split([len(support), len(query)])
        adapted = self.maml.clone()
        for _ in range(self._steps):
            adapted.adapt(F.cross_entropy(adapted(known), label))
        return adapted(asked)

    def logits(self, batch: EpisodeBatch) -> Tensor:
        return torch.stack([self._episode(one.support[0], one.support_label[0], one.query[0]) for one in _each(batch)])

    def backward(self, batch: EpisodeBatch) -> Tensor:
        episodes = list(_each(batch))
        return torch.stack([_backward(self.loss(one) / len(episodes)) for one in episodes]).sum()

    def probabilities(self, batch: EpisodeBatch) -> Tensor:
        return torch.cat([super(ANIL, self).probabilities(one) for one in _each(batch)])


class MAML(ANIL):
    """The same of a whole network, with no other features than the images (Finn et al. 2017).

    Args:
        net: images (n, channels, H, W) to logits (n, ways).
        ways, steps, rate: as of ANIL.
    """

    def __init__(self, net: nn.Module, ways: int, steps: int = 1, rate: float = 0.5) -> None:
        super().__init__(nn.Identity(), net, ways, steps, rate)


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
