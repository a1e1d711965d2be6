"""The errors that deqopt raises on purpose: each names what was wrong, where, and what would be right.

The command line prints their text as one line and exits with status 2; everything else is a bug and keeps
its traceback.
"""

from __future__ import annotations

import math
from dataclasses import fields
from enum import Enum
from typing import Any


def printable(text: object) -> str:
    """Text in one line that a terminal shows and does not obey.

    Control codes, line breaks, marks that reverse the writing and bytes that are not text are written as escapes such
    as ``\\x1b``; so every name of a file can be printed.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def reason_of(error: BaseException, longest: int = 300) -> str:
    """What an error of another library says, in one line of at most `longest` characters; its type if it is silent."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= longest else f"{said[: longest - 1]}…"


class DeqoptError(Exception):
    """Base of every error whose text is written for the user; `printable`, but for line breaks."""

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(printable, str(message).split("\n"))))


class DataError(DeqoptError):
    """A data set that is missing, empty, unreadable or of the wrong shape, type or value range; `printable`."""

    def __init__(self, message: str) -> None:
        # A DataLoader rebuilds a worker's exception from the whole printed traceback: keep the message in it.
        kind = type(self)
        if message.startswith(f"Caught {kind.__name__} "):
            message = message.rsplit(f"\n{kind.__module__}.{kind.__qualname__}: ", 1)[-1].rstrip("\n")
        super().__init__(printable(message))


class PluginError(DeqoptError):
    """A task or solver that is unknown or cannot be imported."""


class TrustError(DeqoptError):
    """Settings from a file that name code which is neither of deqopt nor of a plugin, and nobody vouched for."""


class ProblemError(DeqoptError, ValueError):
    """A joint problem, a start or a setting that does not fit: shapes, types, devices, ranges."""


class NonFiniteError(DeqoptError, ArithmeticError):
    """Every sample of a batch is NaN or infinite, in the data, in the weights, or in the solve."""


class BackwardError(DeqoptError, ArithmeticError):
    """The linear system behind a gradient was not solved to its tolerance, and the adjoint was told to raise."""


class CheckpointError(DeqoptError):
    """A checkpoint that is missing, unreadable or belongs to another task."""


def require(value: object, kind: type, what: str) -> None:
    """Raise ProblemError unless ``value``, called ``what``, is an object of that kind."""
    if isinstance(value, kind):
        return
    if isinstance(value, type) and issubclass(value, kind):
        raise ProblemError(f"{what} is the class {value.__name__} itself: give an object of it, {value.__name__}(...)")
    got = f"the class {value.__name__}" if isinstance(value, type) else f"a value of type {type(value).__name__}"
    raise ProblemError(f"{what} must be an object of {kind.__name__}, got {got}")


def check_finite(owner: str = "", /, **settings: Any) -> None:
    """Raise ProblemError where a setting is infinite or NaN, or holds such a number; what is no number passes.

    Args:
        owner: whose settings they are, to begin the message with.
    """
    for name, value in settings.items():
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ProblemError(f"{owner}{': ' if owner else ''}{name} must be a finite number, got {value}")


def check_kinds(settings: Any) -> None:
    """Raise ProblemError where a field of a dataclass is a class in place of an object, or no member of its enum."""
    for field in fields(settings):
        value, choices = getattr(settings, field.name), type(field.default)
        if isinstance(value, type):
            raise ProblemError(
                f"{field.name} is the class {value.__name__} itself: give an object of it, {value.__name__}(...)"
            )
        if issubclass(choices, Enum) and not isinstance(value, choices):
            members = " or ".join(map(str, choices))
            raise ProblemError(f"{field.name} must be {members}, got {value!r}")
