"""The time, once a device has done its work."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def now(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds by a clock, once the device has done what it was given.

    Example:
        >>> began = now(torch.device("cpu"))
        >>> now(torch.device("cpu")) >= began
        True
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()
