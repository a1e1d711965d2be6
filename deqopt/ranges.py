"""The ranges of settings, and the one sentence that each is refused with."""

from __future__ import annotations

from collections.abc import Callable

from deqopt.errors import ProblemError


def positive(owner: str = "", /, **settings: float) -> None:
    """Raise ProblemError where a setting is 0 or smaller, or NaN.

    Args:
        owner: whose settings they are, to begin the message with.

    Example:
        >>> positive("Tracking", step_size=0.5)
        >>> positive("Tracking", step_size=0.0)
        Traceback (most recent call last):
        deqopt.errors.ProblemError: Tracking: step_size must be larger than 0, got 0.0
    """
    _check(owner, settings, lambda value: value > 0, "larger than 0")


def not_negative(owner: str = "", /, **settings: float) -> None:
    """Raise ProblemError where a setting is smaller than 0, or NaN; the arguments are those of :func:`positive`."""
    _check(owner, settings, lambda value: value >= 0, "0 or larger")


def at_least(least: int, owner: str = "", /, **settings: float) -> None:
    """Raise ProblemError where a setting is smaller than ``least``, or NaN."""
    _check(owner, settings, lambda value: value >= least, f"at least {least}")


def positive_share(owner: str = "", /, **settings: float) -> None:
    """Raise ProblemError where a setting is outside (0, 1]."""
    _check(owner, settings, lambda value: 0 < value <= 1, "in (0, 1]")


def share_below_one(owner: str = "", /, **settings: float) -> None:
    """Raise ProblemError where a setting is outside [0, 1)."""
    _check(owner, settings, lambda value: 0 <= value < 1, "in [0, 1)")


def _check(owner: str, settings: dict[str, float], holds: Callable[[float], bool], right: str) -> None:
    for name, value in settings.items():
        if not holds(value):
            raise ProblemError(f"{owner}{': ' if owner else ''}{name} must be {right}, got {value}")
