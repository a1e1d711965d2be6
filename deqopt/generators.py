"""The states of all global random-number generators of a process, as plain values."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def generator_states(device: torch.device) -> dict[str, Any]:
    """The states of the global generators of Python, NumPy and PyTorch, the latter's on the CPU and on ``device``.

    They are tensors, lists and numbers, which ``torch.load(..., weights_only=True)`` reads.
    """
    version, numbers, normal = random.getstate()
    kind, keys, *place = np.random.get_state(legacy=True)
    states = {
        "python": [version, list(numbers), normal],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), *place],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generator_states(states: dict[str, Any], device: torch.device) -> None:
    """Put the generators where :func:`generator_states` found them.

    Args:
        states: as returned there; where they have none of a CUDA device, its generator stays as it is.
        device: that of this process.
    """
    version, numbers, normal = states["python"]
    random.setstate((version, tuple(numbers), normal))
    kind, keys, *place = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *place))
    torch.set_rng_state(states["torch"].cpu())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
