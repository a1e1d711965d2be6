"""Trainings that are measured by time: a race of so many seconds of one core, and the files of the runs.

Time is that of the process, which other work on the machine does not stretch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from deqopt.equilibrium import BackwardReport
from deqopt.iteration import Status

CURVE = (1 / 4, 1 / 2, 1.0)
"""Shares of the training after which a network is tested."""


@dataclass(frozen=True)
class Snapshot:
    """A network during its training, after that many steps and seconds of one core."""

    seconds: float
    steps: int
    weights: dict[str, Tensor]


class Race:
    """Steps of a training until its time is spent, and the network after some shares of it.

        race = Race(180.0)
        while race.runs:
            batch = ...            # not counted
            with race.step():
                ...                # at the learning rate for race.share
            for snapshot in race.passed(network):
                ...

    Attributes:
        steps: that were taken.

    Args:
        seconds: of the training.
        curve: ascending shares of it at which there is a snapshot; the race ends at the last.
        clock: seconds.
    """

    def __init__(
        self, seconds: float, curve: Sequence[float] = CURVE, clock: Callable[[], float] = process_time
    ) -> None:
        self._seconds, self._clock = seconds, clock
        self._left = list(curve)
        self._spent = 0.0
        self.steps = 0

    @property
    def share(self) -> float:
        """Of the time, that is spent."""
        return self._spent / self._seconds

    @property
    def runs(self) -> bool:
        """Whether there is a snapshot left to reach."""
        return bool(self._left)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Counts what is within, which is one step."""
        started = self._clock()
        yield
        self._spent += self._clock() - started
        self.steps += 1

    def passed(self, network: nn.Module) -> Iterator[Snapshot]:
        """The network as it is now, once for every share that has been reached since the last call."""
        while self._left and self._spent >= self._left[0] * self._seconds:
            del self._left[0]
            weights = {name: value.clone() for name, value in network.state_dict().items()}
            yield Snapshot(self._spent, self.steps, weights)


@dataclass(frozen=True)
class Backward:
    """How the linear systems behind the gradients were solved: means over the steps so far.

    Attributes:
        residual: relative, of a sample.
        products: a sample.
        unsolved: share of the samples whose residual ended above the adjoint's tolerance.
    """

    residual: float
    products: float
    unsolved: float

    @classmethod
    def of_steps(cls, reports: Sequence[BackwardReport]) -> Backward | None:
        """None where no system was solved."""
        if not reports:
            return None
        means = []
        for one in reports:
            assert one.residual is not None and one.nfe is not None and one.status is not None
            unsolved = one.status != int(Status.CONVERGED)
            means.append(torch.stack([one.residual.nanmean(), one.nfe.float().mean(), unsolved.float().mean()]))
        return cls(*torch.stack(means).mean(0).tolist())


def write_run(path: Path, said: Mapping[str, Any]) -> None:
    """Write what a run has found, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said, indent=1) + "\n")


def read_runs(folder: Path, pattern: str = "*.json") -> list[dict[str, Any]]:
    """What the runs in a folder have found, by the names of their files."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]
