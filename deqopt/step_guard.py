"""Decides before every step of the optimiser whether its gradient may be used."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deqopt.errors import CheckpointError, NonFiniteError

WAYS = "optimization.lr, clip gradients (trainer.gradient_clip_val), or raise the Jacobian penalty"
ADVICE = f"lower {WAYS}"
WEIGHTS_DIVERGED = f"the weights have diverged. Lower {WAYS}"
# A gradient that is this many times longer than all of the last RECENT is not used. Adam keeps the square of a gradient
# for thousands of steps: after one that is r times too long its steps are too short for about 2000 log(r / 30) more.
ABSURD = 1e4
RECENT = 100
# As long as fewer than FEW are known: the first gradients may be small because a layer starts at zero.
ABSURD_AT_FIRST = 1e8
FEW = 10
# From here on the squares of its entries are beyond float32, whatever was before. A loss of that size is as good as
# infinite, too: beside it the losses of the other samples of a batch are rounded away.
OVERFLOWS = 1e15


def usable_losses(losses: Tensor) -> Tensor:
    """(B,) whether a loss, (B,), is a finite number to learn from."""
    return losses.detach().abs() < OVERFLOWS


def zero_loss(module: nn.Module) -> Tensor:
    """0, connected to all parameters, whose gradient it makes 0: what a process without a sample has to offer where the
    processes wait for each other's gradients."""
    return torch.stack([one.flatten()[:0].sum() for one in module.parameters() if one.requires_grad]).sum()


def check_weights(module: nn.Module, step: int) -> None:
    """Raise NonFiniteError, naming the parameter, where one holds NaN or infinite values after ``step`` steps."""
    for name, weight in module.named_parameters():
        if not bool(weight.detach().isfinite().all()):
            raise NonFiniteError(f"{name} holds NaN or infinite values at training step {step}: {WEIGHTS_DIVERGED}")


def measures(gradients: list[Tensor], weights: list[Tensor]) -> Tensor:
    """(2,) the length of all gradients together, and the largest entry of all weights; NaN if there is one in them."""
    largest = nn.utils.get_total_norm([one.detach() for one in weights], norm_type=math.inf)
    return torch.stack([nn.utils.get_total_norm(gradients).float(), largest.float()])


@dataclass
class StepGuard:
    """What was left out of a run, and the lengths of the gradients by which the next is judged.

    All decisions are made from the gradients that the optimiser sees, which are the same in all processes.

    Attributes:
        skipped: steps so far.
        left_out: samples so far whose data, start or loss is not finite.
        diverged: samples so far whose solve or backward solve diverged.
        taken: steps so far that were not skipped.
        row: steps that were skipped one after the other, up to now.
        cause: of the first of them, as a sentence without its advice.
        recent: the lengths of the last gradients that were used, without zeros.
    """

    skipped: int = 0
    left_out: int = 0
    diverged: int = 0
    taken: int = 0
    row: int = 0
    cause: str = ""
    recent: list[float] = field(default_factory=list)

    def complaint(self, length: float) -> str | None:
        """Why a gradient of this length cannot be used; None where it can."""
        if not math.isfinite(length):
            return "the gradient is NaN or infinite"
        if length >= OVERFLOWS:
            return f"the gradient has the length {length:.1e}, whose square is beyond float32"
        times = ABSURD if len(self.recent) >= FEW else ABSURD_AT_FIRST
        if self.recent and length > times * max(self.recent):
            return (
                f"the gradient has the length {length:.1e}, and none of the last {len(self.recent)} was longer than "
                f"{max(self.recent):.1e}"
            )
        return None

    def use(self, length: float) -> None:
        """The step is taken with a gradient of this length."""
        self.taken, self.row, self.cause = self.taken + 1, 0, ""
        if length:
            self.recent = [*self.recent[-RECENT + 1 :], length]

    def skip(self, cause: str, most: int | None) -> None:
        """The step is not taken.

        Args:
            cause: a sentence that ends with an advice.
            most: how many may follow one another; None where this step does not count for it.

        Raises:
            NonFiniteError: these were too many.
        """
        self.skipped += 1
        if most is None:
            return
        self.row, self.cause = self.row + 1, self.cause or cause
        if self.row >= most:
            self.stop(f"{self.row} steps in a row")

    def stop(self, what: str) -> None:
        """Raise NonFiniteError: nothing was learned in ``what``."""
        raise NonFiniteError(f"{self.cause}. No gradient could be used in {what}")

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            CheckpointError: it gave something else.
        """
        kinds = {name: type(value) for name, value in asdict(self).items()}
        known = all(name in kinds and type(value) is kinds[name] for name, value in values.items())
        if not known or not all(type(one) is float for one in values.get("recent", [])):
            raise CheckpointError("the checkpoint does not say what was left out of its run: its step_guard is damaged")
        vars(self).update(values)
