"""Optimiser and learning-rate schedule of theta, as one plain configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from deqopt.errors import ProblemError, check_finite


class Schedule(Enum):
    """How the learning rate changes over the training steps."""

    CONSTANT = "constant"
    COSINE = "cosine"
    ONE_CYCLE = "one_cycle"


class Algorithm(Enum):
    """The optimisers of torch.optim that can be named."""

    ADAM = "Adam"
    ADAMW = "AdamW"
    SGD = "SGD"


@dataclass(frozen=True)
class Optimization:
    """How theta is trained.

    Args:
        algorithm: ADAM, ADAMW or SGD (with momentum 0.9).
        lr: learning rate, the highest that the schedule reaches.
        weight_decay: of the algorithm.
        schedule: CONSTANT; COSINE, from ``lr`` to 0; ONE_CYCLE, up to ``lr`` in the first 30% and down to 0.
        max_skipped: how many steps in a row may be skipped, because their gradient is of no use, before the run ends.
    """

    algorithm: Algorithm = Algorithm.ADAM
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: Schedule = Schedule.COSINE
    max_skipped: int = 10

    def __post_init__(self) -> None:
        if not self.lr > 0 or not self.weight_decay >= 0:
            raise ProblemError(
                "Optimization: lr must be larger than 0 and weight_decay 0 or larger, "
                f"got {self.lr} and {self.weight_decay}"
            )
        check_finite("Optimization", lr=self.lr, weight_decay=self.weight_decay)
        if self.max_skipped < 1:
            raise ProblemError(f"Optimization: max_skipped must be at least 1, got {self.max_skipped}")

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        if self.algorithm is Algorithm.SGD:
            return torch.optim.SGD(parameters, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        kind = torch.optim.AdamW if self.algorithm is Algorithm.ADAMW else torch.optim.Adam
        return kind(parameters, lr=self.lr, weight_decay=self.weight_decay)

    def length(self, steps: float) -> int:
        """How many training steps the schedule has, where the trainer estimates ``steps``; 0 where it needs none.

        Raises:
            ProblemError: the schedule ends with the run, and nobody knows when.
        """
        if self.schedule is Schedule.CONSTANT:
            return 0
        if not 0 <= steps < math.inf:
            raise ProblemError(
                f"Optimization: the schedule {self.schedule.name} ends with the run, which must have an end: give "
                "trainer.max_epochs or trainer.max_steps, or take the schedule CONSTANT"
            )
        return int(steps)

    def scheduler(self, optimizer: Optimizer, steps: int) -> LRScheduler | None:
        """The schedule over ``steps`` training steps, to be stepped after each of them."""
        if self.schedule is Schedule.COSINE:
            return CosineAnnealingLR(optimizer, T_max=max(steps, 1))
        if self.schedule is Schedule.ONE_CYCLE:
            return OneCycleLR(optimizer, max_lr=self.lr, total_steps=max(steps, 1))
        return None

    def reached(self, done: int, steps: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Where a run with these settings is after ``done`` of ``steps`` training steps.

        Returns:
            What a group of parameters has in the optimiser but for the parameters, and the state of the schedule; None
            where there is no schedule.
        """
        optimizer = self.optimizer([nn.Parameter(torch.zeros(()))])
        scheduler = self.scheduler(optimizer, steps)
        if scheduler is not None:
            for _ in range(min(done, steps)):
                optimizer.step()
                scheduler.step()
        group = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
        return group, None if scheduler is None else scheduler.state_dict()

    def as_dict(self) -> dict[str, Any]:
        """Plain values: the enums by name."""
        return {name: value.name if isinstance(value, Enum) else value for name, value in vars(self).items()}
