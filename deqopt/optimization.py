"""Optimiser and learning-rate schedule of theta, as one plain configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from inspect import signature
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from deqopt.errors import ProblemError, TrustError, check_finite, reason_of
from deqopt.ranges import at_least, not_negative, positive
from deqopt.trust import trusted_class

Setting = bool | int | float | str | list[float] | None
Made = TypeVar("Made")


class Schedule(Enum):
    """How the learning rate changes over the training steps."""

    CONSTANT = "constant"
    COSINE = "cosine"
    ONE_CYCLE = "one_cycle"


class Algorithm(Enum):
    """Short names of optimisers; any other is named by the path of its class."""

    ADAM = "torch.optim.Adam"
    ADAMW = "torch.optim.AdamW"
    SGD = "torch.optim.SGD"


@dataclass(frozen=True)
class Optimization:
    """The optimiser and the learning-rate schedule of theta.

    Args:
        algorithm: ADAM, ADAMW, SGD (with momentum 0.9), or the path of an optimiser's class such as
            ``torch.optim.RMSprop``.
        lr: largest learning rate of the schedule.
        weight_decay: weight decay of the algorithm.
        schedule: CONSTANT; COSINE, from ``lr`` to 0; ONE_CYCLE, up to ``lr`` in the first 30% and down to 0; or the
            path of a class such as ``torch.optim.lr_scheduler.StepLR``, which is stepped after every training step.
        max_skipped: number of steps in a row that may be skipped because of an unusable gradient before the run ends.
        algorithm_args: additional arguments of the optimiser, such as ``{"momentum": 0.5}``.
        schedule_args: arguments of a schedule that is given by its class, such as ``{"step_size": 100}``.

    Raises:
        ProblemError: a setting is out of its range, or the class does not accept it.
        TrustError: the class is not trusted, see :mod:`deqopt.trust`.

    Example:
        >>> optimization = Optimization("torch.optim.RMSprop", lr=0.01, algorithm_args={"momentum": 0.5})
        >>> type(optimization.optimizer(nn.Linear(2, 2).parameters())).__name__
        'RMSprop'
    """

    algorithm: Algorithm | str = Algorithm.ADAM
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: Schedule | str = Schedule.COSINE
    max_skipped: int = 10
    algorithm_args: dict[str, Setting] = field(default_factory=dict)
    schedule_args: dict[str, Setting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        positive("Optimization", lr=self.lr)
        not_negative("Optimization", weight_decay=self.weight_decay)
        at_least(1, "Optimization", max_skipped=self.max_skipped)
        check_finite("Optimization", lr=self.lr, weight_decay=self.weight_decay)
        check_finite("Optimization", **self.algorithm_args)
        check_finite("Optimization", **self.schedule_args)
        if self.schedule_args and not isinstance(self.schedule, str):
            raise ProblemError(f"Optimization: the schedule {self.schedule.name} takes no schedule_args")
        self.reached(0, 100)  # what the classes refuse, they refuse here

    @property
    def ends_with_run(self) -> bool:
        """Whether the schedule ends with the run, and so depends on the number of training steps."""
        return self.schedule in (Schedule.COSINE, Schedule.ONE_CYCLE)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """The optimiser of ``parameters``."""
        kind = _class("algorithm", self.algorithm, Optimizer, Algorithm)
        arguments: dict[str, Any] = {"lr": self.lr}
        if self.weight_decay or "weight_decay" in signature(kind).parameters:
            arguments["weight_decay"] = self.weight_decay
        if twice := arguments.keys() & self.algorithm_args.keys():
            raise ProblemError(f"Optimization: give {twice.pop()} itself, and not among algorithm_args")
        if self.algorithm is Algorithm.SGD:
            arguments["momentum"] = 0.9
        return _made(kind, parameters, {**arguments, **self.algorithm_args})

    def length(self, steps: float) -> int:
        """How many training steps the schedule has, where the trainer estimates ``steps``; 0 where it needs none.

        Raises:
            ProblemError: the schedule ends with the run, and nobody knows when.
        """
        if not self.ends_with_run:
            return 0
        if not 0 <= steps < math.inf:
            raise ProblemError(
                f"Optimization: the schedule {_named(self.schedule)} ends with the run, which must have an end: give "
                "trainer.max_epochs or trainer.max_steps, or take the schedule CONSTANT"
            )
        return int(steps)

    def scheduler(self, optimizer: Optimizer, steps: int) -> LRScheduler | None:
        """The schedule over ``steps`` training steps, to be stepped after each of them."""
        if self.schedule is Schedule.COSINE:
            return CosineAnnealingLR(optimizer, T_max=max(steps, 1))
        if self.schedule is Schedule.ONE_CYCLE:
            return _made(OneCycleLR, optimizer, {"max_lr": self.lr, "total_steps": max(steps, 1)})
        if self.schedule is Schedule.CONSTANT:
            return None
        return _made(_class("schedule", self.schedule, LRScheduler, Schedule), optimizer, self.schedule_args)

    def reached(self, done: int, steps: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Where a run with these settings is after ``done`` of ``steps`` training steps.

        Returns:
            What a group of parameters has in the optimiser but for the parameters, and the state of the schedule; None
            where there is no schedule.
        """
        optimizer = self.optimizer([nn.Parameter(torch.zeros(()))])
        scheduler = self.scheduler(optimizer, steps)
        if scheduler is not None:
            for _ in range(min(done, steps) if self.ends_with_run else done):
                optimizer.step()
                scheduler.step()
        group = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
        return group, None if scheduler is None else scheduler.state_dict()

    def as_dict(self) -> dict[str, Any]:
        """Plain values: the enums by name; arguments of classes only where there are some."""
        return {name: _named(value) for name, value in vars(self).items() if value != {}}


def _named(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else value


def _class(setting: str, value: Enum | str, kind: type[Made], short: type[Enum]) -> type[Made]:
    """The class that a setting names; it must be stepped without being told anything."""
    path = value if isinstance(value, str) else value.value
    try:
        found = trusted_class(path, kind)
    except TrustError:
        raise
    except Exception as error:  # whatever a module raises while it is imported
        choices = f"{', '.join(short.__members__)} or the path of a subclass of {kind.__name__}"
        reason = f": {reason_of(error)}" if "." in path else ""
        raise ProblemError(f"Optimization: {setting} must be {choices}, got {path!r}{reason}") from error
    parameters = list(signature(found.step).parameters.values())[1:]  # type: ignore[attr-defined]
    if needed := [one.name for one in parameters if one.default is one.empty]:
        raise ProblemError(f"Optimization: {setting} {path} wants {needed[0]!r} at every step, which it does not get")
    return found


def _made(kind: Callable[..., Made], first: object, arguments: Mapping[str, Setting]) -> Made:
    try:
        return kind(first, **arguments)
    except (TypeError, ValueError) as error:
        raise ProblemError(f"Optimization: {kind.__name__}: {reason_of(error)}") from error
