"""What training minimises over theta while the attack maximises it over x: the losses of adversarial training.

All are functions of the logits, so minus their value is the inner objective J, and its envelope gradient is the
gradient of the loss at the worst perturbation that was found (Danskin's theorem).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from deqopt.errors import ProblemError


class TrainingLoss(ABC):
    """A loss of the logits at the attacked image and, where it asks for them, at the clean one."""

    @property
    def attacks(self) -> bool:
        """Whether the images are perturbed in training."""
        return True

    @property
    def sees_clean(self) -> bool:
        """Whether the equilibrium of the clean image is solved for beside that of the attacked one."""
        return False

    @abstractmethod
    def of(self, attacked: Tensor, label: Tensor, clean: Tensor | None = None) -> Tensor:
        """(B,) the loss of logits ``attacked``, and ``clean`` where it sees them, (B, classes), and ``label``, (B,)."""


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

    @property
    def attacks(self) -> bool:
        return False

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
        if not self.beta > 0:
            raise ProblemError(f"beta must be larger than 0, got {self.beta}")

    @property
    def sees_clean(self) -> bool:
        return True

    def of(self, attacked: Tensor, label: Tensor, clean: Tensor | None = None) -> Tensor:
        assert clean is not None
        p, q = clean.log_softmax(1), attacked.log_softmax(1)
        return cross_entropy(clean, label) + self.beta * (p.exp() * (p - q)).sum(1)


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """(B,) of logits (B, classes) and labels (B,)."""
    return F.cross_entropy(logits, label, reduction="none")
