"""The memory of a solver between two steps, with one row per sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deqopt.state import known_all


class Memory:
    """The mutable state of a solve, with one row per sample.

    The attributes of a subclass are tensors with the batch first, and other memories. **Zero means empty**: the tensors
    start at zero, and a row that starts again is reset to zero. So the loop can drop finished rows and restart lost
    rows for any solver.

    Args:
        like: (B, any number) rows with the type and on the device of the solve.

    Attributes:
        rate: (B, 1) the share of the nominal step that a row takes: 1 at first, halved by every restart.
        spent: (B,) evaluations that the last step itself spent on a row, without the evaluation after it; None if none.
        cost: largest number of evaluations for a step and the evaluation after it.

    Example:
        >>> class Velocity(Memory):
        ...     def __init__(self, x):
        ...         super().__init__(x)
        ...         self.velocity = torch.zeros_like(x)
        >>> memory = Velocity(torch.zeros(3, 2))
        >>> memory.restart(torch.tensor([True, False, False]))
        >>> memory.rate.flatten().tolist()
        [0.5, 1.0, 1.0]
    """

    cost: int = 1

    def __init__(self, like: Tensor) -> None:
        self.rate = like.new_ones(len(like), 1)
        self.spent: Tensor | None = None

    def damped(self, w: Tensor, target: Tensor, damping: Tensor | float = 1.0) -> Tensor:
        """``w + rate damping (target - w)``; ``damping`` broadcasts to the rows."""
        share = (damping * self.rate).to(w.dtype)
        return target if known_all((share == 1).all(1)) else torch.lerp(w, target, share)

    def pick(self, keep: Tensor) -> None:
        """Go on with the rows where ``keep``, (B,), is true."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[keep])
            elif isinstance(value, Memory):
                value.pick(keep)

    def restart(self, lost: Tensor) -> None:
        """Forget the rows where ``lost``, (B,), and halve their rate."""
        rate = torch.where(lost[:, None], self.rate / 2, self.rate)
        self.forget(lost)
        self.rate = rate

    def forget(self, lost: Tensor) -> None:
        """Empty the rows where ``lost``, (B,)."""
        for name, value in vars(self).items():
            if name == "rate":
                continue
            if isinstance(value, Tensor):
                setattr(self, name, value.masked_fill(lost.reshape(-1, *[1] * (value.dim() - 1)), 0))
            elif isinstance(value, Memory):
                value.restart(lost)


if TYPE_CHECKING:
    from typing_extensions import TypeVar

    MemoryT = TypeVar("MemoryT", bound=Memory, default=Any)
else:
    from typing import TypeVar

    MemoryT = TypeVar("MemoryT", bound=Memory)


def write(buffer: Tensor, slot: int, rows: Tensor) -> Tensor:
    """``buffer`` (B, memory, ...) with ``rows`` (B, ...) in ``slot``: in place, unless autograd must know both."""
    if buffer.requires_grad or rows.requires_grad:
        buffer = buffer.clone()
    buffer[:, slot] = rows
    return buffer


def write_difference(buffer: Tensor, slot: int, now: Tensor, before: Tensor, known: Tensor) -> Tensor:
    """``buffer`` with ``now - before`` in ``slot``, zero in rows where ``before`` is not ``known``, (B, 1)."""
    if buffer.requires_grad or now.requires_grad or before.requires_grad:
        return write(buffer, slot, (now - before) * known)
    torch.sub(now, before, out=buffer[:, slot])
    if known.device.type != "cpu" or not bool(known.all()):
        buffer[:, slot] *= known
    return buffer
