"""The losses that training minimises over theta and the attack maximises over x, and the objective of attacks in
evaluation.

All of them are functions of the logits, and the inner objective J is minus their value. For the training losses, the
envelope gradient is the gradient of the loss at the worst perturbation that was found (Danskin's theorem).

Cross-entropy is not suitable for attacks on a confident network: if a wrong class has the probability exp(-104), the
gradient is exactly zero in float32, and an attack that follows it finds nothing. So in evaluation logits
are rescaled (:func:`rescaling`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from deqopt.errors import ProblemError, check_finite
from deqopt.ranges import positive

SPREAD = 12.0
"""The difference of the largest and the smallest rescaled logit: about that of a network that was trained against
attacks. With a smaller value, an attack works on all wrong classes at once instead of the closest one; with a larger
value, it chooses one class too early."""


class LogitLoss(ABC):
    """A loss of the logits of the attacked image and, if the loss needs them, of the clean image."""

    @property
    def sees_clean(self) -> bool:
        """Whether the equilibrium of the clean image is solved for too, in addition to that of the attacked image."""
        return False

    @abstractmethod
    def of(self, attacked: Tensor, label: Tensor, clean: Tensor | None = None) -> Tensor:
        """(B,) the loss of the logits ``attacked`` and, if needed, ``clean``, (B, classes), with ``label``, (B,)."""


class TrainingLoss(LogitLoss):
    """A loss for training the weights."""

    attacks: ClassVar[bool] = True
    """Whether the images are perturbed in training."""


@dataclass(frozen=True)
class Adversarial(TrainingLoss):
    """``(1 - clean_weight) CE(attacked) + clean_weight CE(clean)`` (Madry et al. 2018; the mixed loss: Goodfellow et
    al. 2015).

    Args:
        clean_weight: share of the clean images in the loss, in [0, 1); values above 0 double the cost.
    """

    clean_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.clean_weight < 1:
            raise ProblemError(f"clean_weight must be in [0, 1), got {self.clean_weight}; for 1 use the loss Clean")

    @property
    def sees_clean(self) -> bool:
        return self.clean_weight > 0

    def of(self, attacked: Tensor, label: Tensor, clean: Tensor | None = None) -> Tensor:
        loss = cross_entropy(attacked, label)
        if clean is None:
            return loss
        return (1 - self.clean_weight) * loss + self.clean_weight * cross_entropy(clean, label)


@dataclass(frozen=True)
class Clean(TrainingLoss):
    """``CE(clean)``: no attack in training."""

    attacks = False

    def of(self, attacked: Tensor, label: Tensor, clean: Tensor | None = None) -> Tensor:
        return cross_entropy(attacked, label)


@dataclass(frozen=True)
class Trades(TrainingLoss):
    """``CE(clean) + beta KL(p(clean) | p(attacked))`` with ``p = softmax`` (Zhang et al. 2019); doubles the cost.

    Args:
        beta: weight of the second term, larger than 0; a larger value trades clean accuracy for robustness.
    """

    beta: float = 6.0

    def __post_init__(self) -> None:
        positive(beta=self.beta)
        check_finite(beta=self.beta)

    @property
    def sees_clean(self) -> bool:
        return True

    def of(self, attacked: Tensor, label: Tensor, clean: Tensor | None = None) -> Tensor:
        assert clean is not None
        p, q = clean.log_softmax(1), attacked.log_softmax(1)
        return cross_entropy(clean, label) + self.beta * (p.exp() * (p - q)).sum(1)


@dataclass(frozen=True)
class Evasion(LogitLoss):
    """The :func:`log_odds` of a wrong class, for rescaled logits: the objective of the attacks in evaluation."""

    def of(self, attacked: Tensor, label: Tensor, clean: Tensor | None = None) -> Tensor:
        return log_odds(attacked, label)


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """(B,) the cross-entropy of logits (B, classes) and labels (B,)."""
    return F.cross_entropy(logits, label, reduction="none")


def log_odds(logits: Tensor, label: Tensor) -> Tensor:
    """``log sum_{j != label} exp(logits_j) - logits_label``, (B,): ``log(p / (1 - p))`` where p is the probability of a
    wrong class.

    Cross-entropy is the softplus of the log-odds, so both grow together and have the same direction of steepest ascent.
    But the slope of cross-entropy is p times that of the log-odds, and p underflows where the network is confident.
    """
    others = logits.scatter(1, label[:, None], -torch.inf)
    return others.logsumexp(1) - logits.gather(1, label[:, None])[:, 0]


def rescaling(logits: Tensor) -> Tensor:
    """``SPREAD / (max - min)`` of the logits (B, classes), (B, 1): the factor that gives all networks the same
    confidence, without changing the predictions. ``SPREAD`` where all logits are equal.

    The factor must stay constant while an attack moves an image: with two classes, logits that are rescaled again at
    every step would always be ``SPREAD`` apart.
    """
    logits = logits.detach()
    spread = logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True)
    return SPREAD / torch.where(spread > 0, spread, 1.0)
