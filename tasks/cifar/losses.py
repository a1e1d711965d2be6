"""What training minimises over theta while the attack maximises it over x, and what attacks in evaluation maximise.

All are functions of the logits, so minus their value is the inner objective J. Of the losses of training its envelope
gradient is the gradient of the loss at the worst perturbation that was found (Danskin's theorem).

Cross-entropy is no measure for an attack on a confident network: where a wrong class has the probability exp(-104), its
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
"""How far apart the largest and the smallest of rescaled logits are: as those of a network that was trained against
attacks. With less, an attack works on all wrong classes at once instead of the next one, with more on one too early."""


class LogitLoss(ABC):
    """A loss of the logits at the attacked image and, where it asks for them, at the clean one."""

    @property
    def sees_clean(self) -> bool:
        """Whether the equilibrium of the clean image is solved for beside that of the attacked one."""
        return False

    @abstractmethod
    def of(self, attacked: Tensor, label: Tensor, clean: Tensor | None = None) -> Tensor:
        """(B,) the loss of logits ``attacked``, and ``clean`` where it sees them, (B, classes), and ``label``, (B,)."""


class TrainingLoss(LogitLoss):
    """A loss that the weights can be trained with."""

    attacks: ClassVar[bool] = True
    """Whether the images are perturbed in training."""


@dataclass(frozen=True)
class Adversarial(TrainingLoss):
    """``(1 - clean_weight) CE(attacked) + clean_weight CE(clean)`` (Madry et al. 2018; with the mix, Goodfellow et al.
    2015).

    Args:
        clean_weight: share of the clean images in the loss, in [0, 1); larger than 0 it doubles the cost.
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
        beta: larger than 0; more of it trades accuracy on clean images for robustness.
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
    """The :func:`log_odds` of a wrong class: what the attacks of the evaluation maximise, of rescaled logits."""

    def of(self, attacked: Tensor, label: Tensor, clean: Tensor | None = None) -> Tensor:
        return log_odds(attacked, label)


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """(B,) of logits (B, classes) and labels (B,)."""
    return F.cross_entropy(logits, label, reduction="none")


def log_odds(logits: Tensor, label: Tensor) -> Tensor:
    """``log sum_{j != label} exp(logits_j) - logits_label``, (B,): ``log(p / (1 - p))`` where p is the probability of a
    wrong class.

    Cross-entropy is its softplus, so both grow together and have one direction of steepest ascent; but the slope of
    this one is not p, which underflows where the network is sure.
    """
    others = logits.scatter(1, label[:, None], -torch.inf)
    return others.logsumexp(1) - logits.gather(1, label[:, None])[:, 0]


def rescaling(logits: Tensor) -> Tensor:
    """``SPREAD / (max - min)`` of the logits (B, classes), (B, 1): the factor that makes their confidence the same for
    every network, without another decision. ``SPREAD`` where all are equal.

    To be held constant while an attack moves an image: with two classes, logits that were always rescaled anew would be
    ``SPREAD`` apart wherever it moves.
    """
    logits = logits.detach()
    spread = logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True)
    return SPREAD / torch.where(spread > 0, spread, 1.0)
