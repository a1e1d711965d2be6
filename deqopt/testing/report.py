"""How a contract is examined: clause after clause, and all that is broken is reported at once."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, MappingProxyType
from typing import Any, TypeVar

S = TypeVar("S")
Clause = Callable[[S], Iterable[str]]
"""What yields a sentence for everything that breaks it. Its name is the clause's, its docstring what it promises."""


def clauses_of(module: str) -> tuple[Clause[Any], ...]:
    """The clauses of a module: its public functions, in the order in which they are written."""
    functions = (one for one in vars(sys.modules[module]).values() if isinstance(one, FunctionType))
    return tuple(one for one in functions if one.__module__ == module and not one.__name__.startswith("_"))


# Findings beyond these are only counted.
SHOWN = 4


class Inapplicable(Exception):
    """Raised by a clause that the subject gives no occasion to break; the text says why."""


@dataclass(frozen=True)
class Breach:
    """A broken clause: what it promises, and what came instead."""

    clause: str
    promise: str
    found: tuple[str, ...]

    def __str__(self) -> str:
        more = len(self.found) - SHOWN
        lines = [f"  {self.clause}: {self.promise}", *(f"    - {line}" for line in self.found[:SHOWN])]
        return "\n".join(lines + [f"    - and {more} more"] * (more > 0))


class ContractError(AssertionError):
    """A solver or a task breaks clauses of its contract; the text lists all of them.

    Attributes:
        breaches: the broken clauses.
        kept: the names of those that are kept.
    """

    def __init__(self, subject: str, breaches: Sequence[Breach], kept: Sequence[str], left: int = 0) -> None:
        self.breaches, self.kept = tuple(breaches), tuple(kept)
        title = f"{subject} breaks {len(breaches)} of {len(breaches) + len(kept)} clauses of its contract"
        rest = [f"  {left} more clauses rest on these and were not examined"] if left else []
        super().__init__("\n".join([f"{title}:", *map(str, breaches), *rest]))

    @property
    def broken(self) -> tuple[str, ...]:
        """The names of the broken clauses."""
        return tuple(breach.clause for breach in self.breaches)


@dataclass(frozen=True)
class Report:
    """What was found in order.

    Attributes:
        subject: what was examined.
        kept: the names of the clauses that it keeps.
        skipped: why others did not apply, by name.

    Example:
        >>> print(Report("MySolver", kept=("the_objective_improves",)))
        MySolver keeps all 1 clauses of its contract: the_objective_improves
    """

    subject: str
    kept: tuple[str, ...]
    skipped: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __str__(self) -> str:
        lines = [f"{self.subject} keeps all {len(self.kept)} clauses of its contract: {', '.join(self.kept)}"]
        return "\n".join(lines + [f"  skipped {clause}: {reason}" for clause, reason in self.skipped.items()])


def examine(name: str, subject: S, *stages: Sequence[Clause[S]]) -> Report:
    """Run all clauses, each for itself: an exception in one is a breach of that one.

    Args:
        stages: the clauses of one are examined where those of the stages before it are kept.

    Raises:
        ContractError: at least one is broken.
    """
    kept: list[str] = []
    skipped: dict[str, str] = {}
    for number, clauses in enumerate(stages, start=1):
        breaches: list[Breach] = []
        first: Exception | None = None
        for clause in clauses:
            found: list[str] = []
            try:
                found.extend(clause(subject))
            except Inapplicable as reason:
                skipped[clause.__name__] = str(reason)
                continue
            except Exception as error:  # whatever foreign code raises; it is reported, and chained below
                found.append(_described(error))
                first = first or error
            if found:
                breaches.append(Breach(clause.__name__, _promise(clause), tuple(found)))
            else:
                kept.append(clause.__name__)
        if breaches:
            raise ContractError(name, breaches, kept, sum(map(len, stages[number:]))) from first
    return Report(name, tuple(kept), skipped)


def _promise(clause: Clause[S]) -> str:
    return " ".join((inspect.getdoc(clause) or "").split())


def _described(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"raised {type(error).__name__}: {text} ({Path(frame.filename).name}:{frame.lineno}, in {frame.name})"
