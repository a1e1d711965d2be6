"""What a checkpoint says about itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

WRITER = "RunCheckpoint"
"""What the keys begin with under which :class:`deqopt.callbacks.RunCheckpoint` keeps its state."""


@dataclass(frozen=True)
class Record:
    """When a checkpoint was written and how good it is.

    Args:
        step: how many optimiser steps were done.
        monitor: the figure by which the best of the run is chosen; None where the checkpoint does not say.
        score: the latest value of that figure; None where there was none yet.
        best: the best value so far.
    """

    step: int | None
    monitor: str | None
    score: float | None
    best: float | None

    @classmethod
    def of(cls, content: Any) -> Record:
        """The record in the content of a checkpoint; whatever is missing or of another type counts as not said."""
        content = content if isinstance(content, dict) else {}
        callbacks = content.get("callbacks")
        states = callbacks.items() if isinstance(callbacks, dict) else ()
        state = next((state for key, state in states if str(key).startswith(WRITER) and isinstance(state, dict)), {})
        step, monitor = content.get("global_step"), state.get("monitor")
        return cls(
            step if isinstance(step, int) else None,
            monitor if isinstance(monitor, str) else None,
            finite_number(state.get("current_score")),
            finite_number(state.get("best_model_score")),
        )

    def __str__(self) -> str:
        said = ["of an unknown step" if self.step is None else f"step {self.step}"]
        if self.score is not None:
            said.append(f"{self.monitor} {self.score:.6g}")
        return ", ".join(said)


def finite_number(value: Any) -> float | None:
    """A number or a tensor of one as a float; None for all else, also for NaN and infinity."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    return number if math.isfinite(number) else None
