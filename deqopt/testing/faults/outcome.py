"""What a fault can do to a run, and how a case is judged."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """How a fault ended. All but ``KEPT`` break a promise."""

    KEPT = "as promised"
    LOST = "lost"
    SILENT = "silent"
    EXECUTED = "executed"
    HUNG = "hung"
    OTHER = "otherwise"


MEANING = {
    Outcome.LOST: "steps of training that should have been saved are gone",
    Outcome.SILENT: "a wrong result, and nothing was said",
    Outcome.EXECUTED: "data, settings or a checkpoint ran code",
    Outcome.HUNG: "the command did not end in time",
    Outcome.OTHER: "another promise is broken: an exit status, a traceback, a raw control character",
}


class Broken(Exception):
    """A promise that a case found broken."""

    def __init__(self, outcome: Outcome, why: str) -> None:
        super().__init__(why)
        self.outcome = outcome


@dataclass(frozen=True)
class Verdict:
    """The outcome of one case.

    Attributes:
        name, case: the class of the fault and the number of the case, which with the seed repeat it.
        fault: what was done, in words.
        why: what came instead of what is promised; empty where the promise was kept.
        seconds: how long the slowest command of the case took.
        transcript: all commands of the case, how they ended and what they wrote.
    """

    name: str
    case: int
    fault: str
    outcome: Outcome
    why: str
    seconds: float
    transcript: str


def expect(holds: bool, outcome: Outcome, why: str) -> None:
    """Raise Broken unless the promise holds."""
    if not holds:
        raise Broken(outcome, why)
