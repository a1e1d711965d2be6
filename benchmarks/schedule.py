"""The learning rate of trainings that are measured by time: a function of the share of it that is spent."""

from __future__ import annotations

import math

WARM_UP = 0.1
"""Share of the training in which the rate rises."""


def shape(share: float) -> float:
    """The learning rate after a share of the training: up to 1 in a tenth of it, then down to 0 by a cosine."""
    if share < WARM_UP:
        return 0.1 + 0.9 * share / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * min((share - WARM_UP) / (1 - WARM_UP), 1.0)))
