"""A race: several trainings in turns, each for the same time, with a snapshot of every network after shares of it.

Time is that of the process, which other work on the machine does not stretch, and of the training steps alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from deqopt.errors import NonFiniteError

SHARES = (1 / 4, 1 / 2, 1.0)
"""Of the time, after which there is a snapshot; ascending, and the last ends the race."""
WARM_UP = 0.1
"""Share of the time in which the learning rate rises."""


def rate(share: float) -> float:
    """The learning rate after a share of the time: up to 1 in a tenth of it, then down to 0 by a cosine."""
    if share < WARM_UP:
        return 0.1 + 0.9 * share / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * min((share - WARM_UP) / (1 - WARM_UP), 1.0)))


class Contestant(ABC):
    """A network in training.

    Attributes:
        network: what is trained.
        random_state: of its own random numbers, so that it draws the same whoever else takes part.
    """

    network: nn.Module
    random_state: Tensor

    @classmethod
    def seeded(cls, seed: int, make: Callable[[], Contestant]) -> Contestant:
        """A new one, whose first weights and random numbers come from ``seed``."""
        torch.manual_seed(seed)
        made = make()
        made.random_state = torch.get_rng_state()
        return made

    @abstractmethod
    def next_batch(self) -> Any:
        """What the next step trains on; loading it does not count."""

    @abstractmethod
    def step(self, batch: Any, rate: float) -> Tensor:
        """One training step at ``rate`` times the highest learning rate; returns the loss, not finite where the
        training has diverged."""

    @abstractmethod
    def scores(self) -> Mapping[str, Sequence[float]]:
        """By metric, what the network as it is reaches on every test sample."""

    def notes(self) -> Mapping[str, float]:
        """What else there is to say of the training so far. By default nothing."""
        return {}

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Within it, the global random numbers are its own."""
        torch.set_rng_state(self.random_state)
        yield
        self.random_state = torch.get_rng_state()


@dataclass(frozen=True)
class Snapshot:
    """The state of a network after so many steps, which took so many seconds."""

    seconds: float
    steps: int
    weights: Mapping[str, Any]


def race(
    contestants: Mapping[str, Contestant], seconds: float, clock: Callable[[], float] = process_time
) -> dict[str, list[Snapshot]]:
    """Train all in place, and in turns: the next step is that of who has used the least time.

    Args:
        contestants: by name.
        seconds: of training steps, for each.
        clock: seconds.

    Returns:
        By name, a snapshot for each of :data:`SHARES`.

    Raises:
        NonFiniteError: a training has diverged.
    """
    legs = {name: _Leg(name, one, seconds) for name, one in contestants.items()}
    while running := [leg for leg in legs.values() if len(leg.snapshots) < len(SHARES)]:
        min(running, key=lambda leg: leg.spent).step(clock)
    return {name: leg.snapshots for name, leg in legs.items()}


class _Leg:
    """What a contestant has behind it."""

    def __init__(self, name: str, contestant: Contestant, seconds: float) -> None:
        self._name, self._contestant, self._seconds = name, contestant, seconds
        self.spent, self._steps = 0.0, 0
        self.snapshots: list[Snapshot] = []

    def step(self, clock: Callable[[], float]) -> None:
        with self._contestant.drawing():
            self._contestant.network.train()
            batch = self._contestant.next_batch()
            began = clock()
            loss = self._contestant.step(batch, rate(self.spent / self._seconds))
            self.spent += clock() - began
        self._steps += 1
        if not bool(loss.isfinite()):
            raise NonFiniteError(
                f"training of {self._name} has diverged in step {self._steps}: lower its learning rate or the length "
                "of its gradients, or raise its penalty"
            )
        while len(self.snapshots) < len(SHARES) and self.spent >= SHARES[len(self.snapshots)] * self._seconds:
            weights = deepcopy(self._contestant.network.state_dict())
            self.snapshots.append(Snapshot(self.spent, self._steps, weights))
